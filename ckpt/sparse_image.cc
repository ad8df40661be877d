#include "ckpt/sparse_image.h"

#include <algorithm>
#include <cstring>

namespace perdure {
namespace {

// What of [offset, offset + bytes) lies in the page of `offset`.
uint64_t BytesInPage(uint64_t offset, uint64_t bytes) {
  return std::min(bytes, SparseImage::kPageBytes - offset % SparseImage::kPageBytes);
}

}  // namespace

void SparseImage::Write(uint64_t offset, const void* data, uint64_t bytes) {
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const uint64_t at = offset % kPageBytes, taken = BytesInPage(offset, bytes);
    std::memcpy(pages_[offset - at].data() + at, from, taken);  // A new page is zero.
    offset += taken;
    from += taken;
    bytes -= taken;
  }
}

void SparseImage::Read(uint64_t offset, void* data, uint64_t bytes) const {
  char* to = static_cast<char*>(data);
  while (bytes > 0) {
    const uint64_t at = offset % kPageBytes, taken = BytesInPage(offset, bytes);
    if (const char* page = Page(offset - at))
      std::memcpy(to, page + at, taken);
    else
      std::memset(to, 0, taken);
    offset += taken;
    to += taken;
    bytes -= taken;
  }
}

bool SparseImage::Touches(uint64_t offset, uint64_t bytes) const {
  const auto page = pages_.lower_bound(offset - offset % kPageBytes);
  return page != pages_.end() && page->first < offset + bytes;
}

const char* SparseImage::Page(uint64_t offset) const {
  const auto found = pages_.find(offset);
  return found == pages_.end() ? nullptr : found->second.data();
}

}  // namespace perdure
