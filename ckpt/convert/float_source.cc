#include "ckpt/convert/float_source.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {

absl::Status TensorSource::Read(int64_t first, std::span<float> out) {
  ASSIGN_OR_RETURN(const std::shared_ptr<const File> file, files_.Get(path_));
  return ReadTorchFloats(*file, tensor_, first, out);
}

void ChainSource::Add(std::shared_ptr<FloatSource> source, int64_t first, int64_t count) {
  PERDURE_CHECK(first >= 0 && count > 0 && first <= source->size() - count);
  links_.push_back({std::move(source), first, count, size_});
  size_ += count;
}

absl::Status ChainSource::Read(int64_t first, std::span<float> out) {
  PERDURE_CHECK(first >= 0 && first <= size_ - static_cast<int64_t>(out.size()));
  auto link = std::upper_bound(links_.begin(), links_.end(), first,
                               [](int64_t at, const Link& next) { return at < next.at; });
  if (link != links_.begin()) --link;
  for (; !out.empty(); ++link) {
    const int64_t skipped = first - link->at;
    const int64_t count = std::min<int64_t>(link->count - skipped, std::ssize(out));
    RETURN_IF_ERROR(
        link->source->Read(link->first + skipped, out.first(static_cast<size_t>(count))));
    out = out.subspan(static_cast<size_t>(count));
    first += count;
  }
  return absl::OkStatus();
}

absl::Status ReplicatedSource::Read(int64_t first, std::span<float> out) {
  RETURN_IF_ERROR(copies_.front()->Read(first, out));
  std::vector<float> other(out.size());
  for (size_t copy = 1; copy < copies_.size(); ++copy) {
    RETURN_IF_ERROR(copies_[copy]->Read(first, other));
    if (std::memcmp(out.data(), other.data(), out.size_bytes()) == 0) continue;
    for (size_t i = 0; i < other.size(); ++i)
      if (std::bit_cast<uint32_t>(out[i]) != std::bit_cast<uint32_t>(other[i]))
        return DataLoss(
            "{}: element {} is {} on tensor rank 0 and {} on tensor rank {}; it is replicated and "
            "must be equal: the run had diverged, use an older checkpoint",
            what_, first + static_cast<int64_t>(i), out[i], other[i], copy);
  }
  return absl::OkStatus();
}

absl::Status ZeroSource::Read(int64_t, std::span<float> out) {
  std::fill(out.begin(), out.end(), 0.0F);
  return absl::OkStatus();
}

}  // namespace perdure
