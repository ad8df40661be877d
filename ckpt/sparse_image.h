// A file's worth of bytes in memory of which few were ever written; the others are zero and cost
// nothing.
#pragma once

#include <array>
#include <cstdint>
#include <map>

namespace perdure {

class SparseImage {
 public:
  static constexpr uint64_t kPageBytes = 4096;

  void Write(uint64_t offset, const void* data, uint64_t bytes);
  void Read(uint64_t offset, void* data, uint64_t bytes) const;

  // Whether anything was ever written to [offset, offset + bytes).
  bool Touches(uint64_t offset, uint64_t bytes) const;

  // The page that begins at `offset` (a multiple of kPageBytes), or null: nothing was written
  // there. Stays where it is.
  const char* Page(uint64_t offset) const;

 private:
  std::map<uint64_t, std::array<char, kPageBytes>> pages_;  // By offset.
};

}  // namespace perdure
