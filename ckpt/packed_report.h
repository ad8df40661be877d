// Reports of runs and parts as agents send them to each other: 16 bytes per digest and next to
// nothing for the rest, which is about 22 bytes per MiB of state, half of what their JSON takes.
// Values; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ckpt/checkpoint.h"
#include "ckpt/part_plan.h"

namespace perdure {

// Appends to a string.
class PackWriter {
 public:
  explicit PackWriter(std::string* to) : to_(*to) {}

  void Number(uint64_t value);  // One byte per seven bits.
  void String(std::string_view text);
  void One(const Digest& digest);
  void Digests(std::span<const Digest> digests);
  // Each >= 0; cheap where one follows the other. How many is known to the reader.
  void Numbers(std::span<const int64_t> numbers);

 private:
  std::string& to_;
};

// Takes from the front of what a PackWriter may have written. The first error stays; after it every
// read gives an empty value, so that a caller reads all and looks once. Allocates no more than a
// few times what was given.
class PackReader {
 public:
  // `what` names it in messages.
  PackReader(std::string_view bytes, std::string_view what) : rest_(bytes), what_(what) {}

  uint64_t Number(uint64_t most = std::numeric_limits<uint64_t>::max());
  std::string String(size_t most);
  Digest One();
  std::vector<Digest> Digests();
  // REQUIRES: `count` is bounded by what was given.
  std::vector<int64_t> Numbers(size_t count);
  void Fail(std::string_view why);
  bool ok() const { return status_.ok(); }
  // The first error (DataLoss), or that of bytes that are left.
  absl::Status Done();

 private:
  std::string_view rest_;
  const std::string_view what_;
  absl::Status status_;
};

void PackRun(const RunReport& run, PackWriter& to);
// What JoinRuns then looks at; an error is the reader's.
RunReport UnpackRun(PackReader& from);

std::string PackPart(const PartReport& part);
// DataLoss: PackPart has not written it, or it is no part of any checkpoint. Safe on hostile bytes.
absl::StatusOr<PartReport> UnpackPart(std::string_view packed);

}  // namespace perdure
