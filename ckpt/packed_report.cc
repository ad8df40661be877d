#include "ckpt/packed_report.h"

#include <algorithm>

#include "ckpt/manifest_json.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr size_t kFileNameBytesMax = 255;
constexpr size_t kDigestBytes = sizeof(Digest::bytes);
constexpr uint64_t kNumberMost = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());

// Small numbers of either sign.
uint64_t Fold(int64_t value) {
  return (static_cast<uint64_t>(value) << 1) ^ static_cast<uint64_t>(value >> 63);
}
int64_t Unfold(uint64_t folded) {
  return static_cast<int64_t>((folded >> 1) ^ (~(folded & 1) + 1));
}

}  // namespace

void PackWriter::Number(uint64_t value) {
  for (; value >= 0x80; value >>= 7) to_.push_back(static_cast<char>(value | 0x80));
  to_.push_back(static_cast<char>(value));
}

void PackWriter::String(std::string_view text) {
  Number(text.size());
  to_.append(text);
}

void PackWriter::One(const Digest& digest) {
  to_.append(reinterpret_cast<const char*>(digest.bytes.data()), kDigestBytes);
}

void PackWriter::Digests(std::span<const Digest> digests) {
  Number(digests.size());
  for (const Digest& digest : digests) One(digest);
}

// Stretches of consecutive numbers: how far from the last number of the one before, and how long.
void PackWriter::Numbers(std::span<const int64_t> numbers) {
  int64_t last = 0;
  for (size_t i = 0; i < numbers.size();) {
    PERDURE_CHECK(numbers[i] >= 0);
    size_t end = i + 1;
    while (end < numbers.size() && numbers[end] - 1 == numbers[end - 1]) ++end;
    Number(Fold(numbers[i] - last));
    Number(end - i);
    last = numbers[end - 1];
    i = end;
  }
}

void PackReader::Fail(std::string_view why) {
  if (status_.ok()) status_ = DataLoss("{}: {}", what_, why);
  rest_ = {};
}

absl::Status PackReader::Done() {
  if (status_.ok() && !rest_.empty()) Fail(fmt::format("{} bytes too many", rest_.size()));
  return status_;
}

uint64_t PackReader::Number(uint64_t most) {
  uint64_t value = 0;
  for (int shift = 0; status_.ok(); shift += 7) {
    if (rest_.empty()) {
      Fail("it ends too early");
      break;
    }
    const auto byte = static_cast<uint8_t>(rest_.front());
    rest_.remove_prefix(1);
    const uint64_t bits = byte & 0x7F;
    // One way to write each number: no empty last byte, no bit beyond the sixty-fourth.
    if ((shift > 0 && byte == 0) || shift > 63 || bits << shift >> shift != bits) {
      Fail("a number is not written as it should be");
      break;
    }
    value |= bits << shift;
    if (byte >= 0x80) continue;
    if (value > most) Fail(fmt::format("{} where {} is the most", value, most));
    break;
  }
  return status_.ok() ? value : 0;
}

std::string PackReader::String(size_t most) {
  const uint64_t size = Number(most);
  if (size > rest_.size()) Fail("it ends too early");
  if (!status_.ok()) return {};
  std::string text(rest_.substr(0, size));
  rest_.remove_prefix(size);
  return text;
}

Digest PackReader::One() {
  Digest digest;
  if (rest_.size() < kDigestBytes) Fail("it ends too early");
  if (!status_.ok()) return digest;
  std::copy_n(rest_.begin(), kDigestBytes, digest.bytes.begin());
  rest_.remove_prefix(kDigestBytes);
  return digest;
}

std::vector<Digest> PackReader::Digests() {
  const uint64_t count = Number();
  if (count > rest_.size() / kDigestBytes) Fail("it ends too early");
  std::vector<Digest> digests(status_.ok() ? count : 0);
  for (Digest& digest : digests) digest = One();
  return digests;
}

std::vector<int64_t> PackReader::Numbers(size_t count) {
  std::vector<int64_t> numbers;
  uint64_t last = 0;
  while (status_.ok() && numbers.size() < count) {
    const uint64_t first = last + static_cast<uint64_t>(Unfold(Number()));
    const uint64_t length = Number(count - numbers.size());
    if (!status_.ok()) break;
    const bool torn = !numbers.empty() && first == last + 1;  // It belongs to the one before.
    if (length == 0 || torn || first > kNumberMost || length - 1 > kNumberMost - first) {
      Fail("a stretch of numbers is not one");
      break;
    }
    for (uint64_t i = 0; i < length; ++i) numbers.push_back(static_cast<int64_t>(first + i));
    last = first + length - 1;
  }
  return status_.ok() ? numbers : std::vector<int64_t>();
}

namespace {

void PackPlace(const std::string& file, uint64_t bytes,
               const std::array<uint64_t, kStatePartCount>& offsets,
               const std::vector<int64_t>& runs, PackWriter& to) {
  to.String(file);
  to.Number(bytes);
  for (const uint64_t offset : offsets) to.Number(offset);
  to.Number(runs.size());
  for (const int64_t run : runs) to.Number(static_cast<uint64_t>(run));
}

// Of a run or a part.
template <typename Report>
void UnpackPlace(PackReader& from, Report& report) {
  report.file = from.String(kFileNameBytesMax);
  if (!IsPartFileName(report.file)) from.Fail("its file's name is none of a part");
  report.bytes = from.Number(kNumberMost);
  for (uint64_t& offset : report.offsets) offset = from.Number(kNumberMost);
  const uint64_t runs = from.Number();
  for (uint64_t run = 0; run < runs && from.ok(); ++run)
    report.runs.push_back(static_cast<int64_t>(from.Number(kNumberMost)));
}

}  // namespace

void PackRun(const RunReport& run, PackWriter& to) {
  PERDURE_CHECK(run.atoms.size() == run.atom_digests.size());
  PERDURE_CHECK(run.blocks.size() == run.block_digests.size());
  PackPlace(run.file, run.bytes, run.offsets, run.runs, to);
  to.Number(static_cast<uint64_t>(run.run));
  to.Digests(run.atom_digests);
  to.Numbers(run.atoms);
  to.Digests(run.block_digests);
  to.Numbers(std::vector<int64_t>(run.blocks.begin(), run.blocks.end()));
}

RunReport UnpackRun(PackReader& from) {
  RunReport run;
  UnpackPlace(from, run);
  run.run = static_cast<int64_t>(from.Number(kNumberMost));
  run.atom_digests = from.Digests();
  run.atoms = from.Numbers(run.atom_digests.size());
  run.block_digests = from.Digests();
  const std::vector<int64_t> blocks = from.Numbers(run.block_digests.size());
  run.blocks.assign(blocks.begin(), blocks.end());
  return run;
}

std::string PackPart(const PartReport& part) {
  PERDURE_CHECK(part.atoms.size() == part.atom_digests.size());
  std::string packed;
  PackWriter to(&packed);
  PackPlace(part.file, part.bytes, part.offsets, part.runs, to);
  to.Digests(part.atom_digests);
  to.Numbers(part.atoms);
  to.Digests(part.blocks);
  return packed;
}

absl::StatusOr<PartReport> UnpackPart(std::string_view packed) {
  PackReader from(packed, "the report of a part");
  PartReport part;
  UnpackPlace(from, part);
  part.atom_digests = from.Digests();
  part.atoms = from.Numbers(part.atom_digests.size());
  part.blocks = from.Digests();
  RETURN_IF_ERROR(from.Done());
  RETURN_IF_ERROR(ValidatePart(part, "part"));
  return part;
}

}  // namespace perdure
