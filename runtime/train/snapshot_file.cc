#include "runtime/train/snapshot_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>

#include "runtime/base/check.h"
#include "runtime/base/parallel.h"
#include "runtime/base/status.h"
#include "runtime/base/unique_fd.h"

namespace perdure {
namespace {

constexpr int64_t kPageBytes = 4096;
constexpr std::array<char, 8> kMagic = {'P', 'E', 'R', 'D', 'U', 'R', 'E', 'S'};
constexpr uint32_t kVersion = 2;
constexpr uint32_t kEmpty = 0, kWriting = 1, kComplete = 2;
constexpr int64_t kIndexBytes = sizeof(int64_t) + sizeof(Digest);  // Of one atom.

// The first page, as it stands in the file; little-endian as all of it.
struct Header {
  std::array<char, 8> magic;
  uint32_t version;
  uint32_t state;
  uint64_t generation;
  int64_t step;
  int32_t rank;
  uint32_t zero;
  int64_t atoms;
  int64_t elements;  // Of each part.
  std::array<char, kSnapshotRunIdBytes> run_id;
  Digest sample_chain;
  Digest tables;   // Over index and digests.
  Digest digest;   // Over the page, state and digest taken as zero.
  uint64_t steps;  // Of `history`.
  std::array<StepNumbers, kSnapshotStepsMax> history;
  uint64_t recent;  // Of `trail`.
  std::array<StepNumbers, kRecentStepsMax> trail;
  std::array<std::byte, 840> rest;
};
static_assert(sizeof(Header) == kPageBytes && offsetof(Header, digest) == 152);

int64_t HeadBytes(int64_t atoms) {
  const int64_t bytes = kPageBytes + atoms * kIndexBytes;
  return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
}

int64_t CountOf(const AtomTable& table, int64_t atom) {
  return table.atoms()[static_cast<size_t>(atom)].count;
}

int64_t FileBytes(int64_t atoms, int64_t elements) {
  return HeadBytes(atoms) + elements * kStatePartCount * static_cast<int64_t>(sizeof(float));
}

Digest PageDigest(const Header& header) {
  Header plain = header;
  plain.state = 0;
  plain.digest = {};
  return DigestOf(&plain, sizeof plain);
}

bool IsZero(const void* data, size_t bytes) {
  const auto* begin = static_cast<const std::byte*>(data);
  return std::all_of(begin, begin + bytes, [](std::byte b) { return b == std::byte{0}; });
}

// REQUIRES: `recent` fits.
Trail TrailOf(const Header& header) {
  return {
      .sample_chain = header.sample_chain,
      .recent = {header.trail.begin(), header.trail.begin() + static_cast<int64_t>(header.recent)}};
}

// Whether the page is that of a complete snapshot. Sizes are compared with the file's by the
// caller.
absl::Status CheckPage(const Header& header, const std::string& path) {
  const auto bad = [&](const char* field, const auto& what) {
    return DataLoss("snapshot {}: {} is {}; it is not used", path, field, what);
  };
  // Also while its other fields are being filled for the first time, in whatever order.
  if (header.state == kEmpty) return FailedPrecondition("snapshot {} is empty", path);
  if (header.magic != kMagic) return bad("magic", "not that of a snapshot");
  if (header.version != kVersion)
    return bad("version", fmt::format("{}, this build reads {}", header.version, kVersion));
  if (header.state == kWriting) return FailedPrecondition("snapshot {} is not complete", path);
  if (header.state != kComplete) return bad("state", header.state);
  if (header.digest != PageDigest(header)) return bad("digest of the header", "wrong");
  if (header.step < 0) return bad("step", header.step);
  if (header.rank < 0) return bad("rank", header.rank);
  if (header.zero != 0 || !IsZero(&header.rest, sizeof header.rest))
    return bad("padding of the header", "not zero");
  constexpr int64_t kMost = int64_t{1} << 56;  // Further arithmetic cannot overflow.
  if (header.atoms < 0 || header.atoms > kMost / kIndexBytes) return bad("atoms", header.atoms);
  if (header.elements < header.atoms || header.elements > kMost)
    return bad("elements", header.elements);
  const auto text_end = std::find(header.run_id.begin(), header.run_id.end(), '\0');
  if (std::any_of(text_end, header.run_id.end(), [](char c) { return c != '\0'; }))
    return bad("run id", "not text");
  if (header.steps > kSnapshotStepsMax)
    return bad("steps", fmt::format("{}, at most {} fit", header.steps, kSnapshotStepsMax));
  if (header.recent > kRecentStepsMax)
    return bad("recent steps", fmt::format("{}, at most {} fit", header.recent, kRecentStepsMax));
  if (const absl::Status recent = CheckRecent(TrailOf(header).recent); !recent.ok())
    return bad("recent steps", Message(recent));
  return absl::OkStatus();
}

SnapshotStamp StampOf(const Header& header) {
  const auto end = std::find(header.run_id.begin(), header.run_id.end(), '\0');
  return {.run_id = std::string(header.run_id.begin(), end),
          .generation = header.generation,
          .step = header.step,
          .rank = header.rank,
          .history = {.trail = TrailOf(header),
                      .steps = {header.history.begin(),
                                header.history.begin() + static_cast<int64_t>(header.steps)}}};
}

absl::Status ReadBytes(const File& file, int64_t offset, void* data, size_t bytes) {
  iovec piece{data, bytes};
  return file.ReadAt(static_cast<uint64_t>(offset), {&piece, 1});
}

struct OpenSnapshot {
  File file;
  Header header;
};

// A complete one whose length is what its header says. A writer that is at work shows by two
// readings of the page that differ, or by its state.
absl::StatusOr<OpenSnapshot> OpenComplete(const std::string& path) {
  // What is no file must not be waited for.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (descriptor < 0) return ErrnoStatus(errno, "open snapshot " + path);
  File file(descriptor, path);
  struct stat facts {};
  if (::fstat(descriptor, &facts) != 0) return ErrnoStatus(errno, "look at snapshot " + path);
  if (!S_ISREG(facts.st_mode)) return DataLoss("snapshot {}: is not a regular file", path);
  ASSIGN_OR_RETURN(const uint64_t size, file.Size());
  Header header{}, again{};
  const size_t page = std::min<size_t>(size, sizeof header);
  RETURN_IF_ERROR(ReadBytes(file, 0, &header, page));
  RETURN_IF_ERROR(ReadBytes(file, 0, &again, page));
  if (std::memcmp(&header, &again, sizeof header) != 0)
    return FailedPrecondition("snapshot {} is being written", path);
  RETURN_IF_ERROR(CheckPage(header, path));
  const int64_t bytes = FileBytes(header.atoms, header.elements);
  if (size != static_cast<uint64_t>(bytes))
    return DataLoss("snapshot {}: length is {} bytes, by its {} atoms of {} elements it has {}",
                    path, size, header.atoms, header.elements, bytes);
  return OpenSnapshot{std::move(file), header};
}

// Index and digests behind the page, as they were digested.
Digest TablesDigest(const std::byte* tables, int64_t atoms) {
  return DigestOf(tables, static_cast<size_t>(atoms * kIndexBytes));
}

}  // namespace

void StepHistory::Add(const StepNumbers& step) {
  if (steps.size() == kSnapshotStepsMax) steps.erase(steps.begin());
  steps.push_back(step);
}

// ---- names, sizes

std::string SnapshotFileName(uint64_t generation, int32_t rank, int buffer) {
  return fmt::format("g{}-r{}-{}", generation, rank, buffer == 0 ? 'a' : 'b');
}

std::optional<SnapshotName> ParseSnapshotFileName(std::string_view name) {
  SnapshotName parsed;
  const char* const end = name.data() + name.size();
  if (!name.starts_with('g')) return std::nullopt;
  const auto generation = std::from_chars(name.data() + 1, end, parsed.generation);
  if (generation.ec != std::errc() || end - generation.ptr < 3 || generation.ptr[0] != '-' ||
      generation.ptr[1] != 'r')
    return std::nullopt;
  const auto rank = std::from_chars(generation.ptr + 2, end, parsed.rank);
  if (rank.ec != std::errc() || parsed.rank < 0) return std::nullopt;
  parsed.buffer = std::string_view(rank.ptr, end) == "-b" ? 1 : 0;
  // Whatever else is odd (a sign, leading zeros, another end) is not what we would have written.
  if (SnapshotFileName(parsed.generation, parsed.rank, parsed.buffer) != name) return std::nullopt;
  return parsed;
}

int64_t SnapshotFileBytes(const AtomTable& table, std::span<const int64_t> atoms) {
  int64_t elements = 0;
  for (const int64_t atom : atoms) elements += CountOf(table, atom);
  return FileBytes(static_cast<int64_t>(atoms.size()), elements);
}

std::vector<ByteRange> SnapshotRanges(const AtomTable& table, std::span<const int64_t> owned,
                                      std::span<const int64_t> wanted) {
  std::vector<int64_t> sorted(wanted.begin(), wanted.end());
  std::sort(sorted.begin(), sorted.end());
  std::vector<ByteRange> part;  // In elements.
  int64_t elements = 0;
  size_t found = 0;
  for (const int64_t atom : owned) {
    const int64_t count = CountOf(table, atom);
    if (std::binary_search(sorted.begin(), sorted.end(), atom)) {
      ++found;
      if (!part.empty() && part.back().offset + part.back().bytes == elements)
        part.back().bytes += count;
      else
        part.push_back({elements, count});
    }
    elements += count;
  }
  PERDURE_CHECK(found == sorted.size());
  constexpr auto kWidth = static_cast<int64_t>(sizeof(float));
  const int64_t head = HeadBytes(static_cast<int64_t>(owned.size()));
  std::vector<ByteRange> ranges = {{0, head}};
  for (int p = 0; p < kStatePartCount; ++p)
    for (const ByteRange& run : part) {
      const int64_t offset = head + (p * elements + run.offset) * kWidth;
      // The head stays by itself: others count on it.
      if (ranges.size() > 1 && ranges.back().offset + ranges.back().bytes == offset)
        ranges.back().bytes += run.bytes * kWidth;
      else
        ranges.push_back({offset, run.bytes * kWidth});
    }
  return ranges;
}

absl::StatusOr<SnapshotStamp> ReadSnapshotStamp(const std::string& path) {
  ASSIGN_OR_RETURN(const OpenSnapshot open, OpenComplete(path));
  return StampOf(open.header);
}

// ---- the writer's side

SnapshotFile::SnapshotFile(std::string path, const AtomTable* table, std::span<const int64_t> atoms)
    : path_(std::move(path)), table_(table) {
  for (const int64_t atom : atoms) {
    atoms_.push_back({.atom = atom});
    elements_ += CountOf(*table, atom);
  }
  head_bytes_ = HeadBytes(static_cast<int64_t>(atoms.size()));
  bytes_ = FileBytes(static_cast<int64_t>(atoms.size()), elements_);
}

SnapshotFile::~SnapshotFile() {
  if (memory_ != nullptr) ::munmap(memory_, static_cast<size_t>(bytes_));
}

absl::StatusOr<std::unique_ptr<SnapshotFile>> SnapshotFile::Create(const std::string& path,
                                                                   const AtomTable* table,
                                                                   std::span<const int64_t> atoms) {
  std::unique_ptr<SnapshotFile> file(new SnapshotFile(path, table, atoms));
  RETURN_IF_ERROR(file->Open());
  return file;
}

absl::Status SnapshotFile::Open() {
  // What a process of this name has left is nobody's.
  if (::unlink(path_.c_str()) != 0 && errno != ENOENT)
    return ErrnoStatus(errno, "replace snapshot " + path_);
  const UniqueFd fd(
      ::open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.open()) return ErrnoStatus(errno, "create snapshot " + path_);
  // Taken now: a page that is not there when it is first written would be a signal.
  if (const int error = ::posix_fallocate(fd.get(), 0, bytes_); error != 0) {
    ::unlink(path_.c_str());
    return ErrnoStatus(error, fmt::format("take the {} bytes of snapshot {} (a larger tmpfs, "
                                          "another snapshot.directory, or snapshot.every = 0)",
                                          bytes_, path_));
  }
  void* memory =
      ::mmap(nullptr, static_cast<size_t>(bytes_), PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (memory == MAP_FAILED) {
    const int error = errno;
    ::unlink(path_.c_str());
    return ErrnoStatus(error, "map snapshot " + path_);
  }
  memory_ = static_cast<std::byte*>(memory);
  auto* at = reinterpret_cast<float*>(memory_ + head_bytes_);
  for (size_t part = 0; part < kStatePartCount; ++part)
    for (AtomState& state : atoms_) {
      state.parts[part] = at;
      at += CountOf(*table_, state.atom);
    }
  auto& header = *reinterpret_cast<Header*>(memory_);
  auto* index = reinterpret_cast<int64_t*>(memory_ + kPageBytes);
  for (size_t i = 0; i < atoms_.size(); ++i) index[i] = atoms_[i].atom;
  header.version = kVersion;
  header.atoms = static_cast<int64_t>(atoms_.size());
  header.elements = elements_;
  header.magic = kMagic;
  return absl::OkStatus();
}

std::atomic_ref<uint32_t> SnapshotFile::state() const {
  return std::atomic_ref<uint32_t>(reinterpret_cast<Header*>(memory_)->state);
}

void SnapshotFile::Begin(const SnapshotStamp& stamp) {
  PERDURE_CHECK(stamp.run_id.size() <= kSnapshotRunIdBytes &&
                stamp.run_id.find('\0') == std::string::npos);
  // An exchange, because no later store may come before it.
  state().exchange(kWriting, std::memory_order_seq_cst);
  auto& header = *reinterpret_cast<Header*>(memory_);
  header.generation = stamp.generation;
  header.step = stamp.step;
  header.rank = stamp.rank;
  header.run_id = {};
  std::copy(stamp.run_id.begin(), stamp.run_id.end(), header.run_id.begin());
  const Trail& trail = stamp.history.trail;
  PERDURE_CHECK(stamp.history.steps.size() <= kSnapshotStepsMax &&
                trail.recent.size() <= kRecentStepsMax);
  header.sample_chain = trail.sample_chain;
  header.recent = trail.recent.size();
  header.trail = {};
  std::copy(trail.recent.begin(), trail.recent.end(), header.trail.begin());
  header.steps = stamp.history.steps.size();
  header.history = {};
  std::copy(stamp.history.steps.begin(), stamp.history.steps.end(), header.history.begin());
}

void SnapshotFile::Void() { state().store(kWriting, std::memory_order_release); }

std::span<std::byte> SnapshotFile::Part(int part) {
  const size_t bytes = static_cast<size_t>(elements_) * sizeof(float);
  return {memory_ + head_bytes_ + static_cast<size_t>(part) * bytes, bytes};
}

std::span<std::byte> SnapshotFile::Pages() {
  const int64_t end = (bytes_ + kPageBytes - 1) / kPageBytes * kPageBytes;
  return {memory_ + head_bytes_, static_cast<size_t>(end - head_bytes_)};
}

std::span<Digest> SnapshotFile::digests() {
  return {reinterpret_cast<Digest*>(memory_ + kPageBytes +
                                    static_cast<int64_t>(atoms_.size() * sizeof(int64_t))),
          atoms_.size()};
}

std::string SnapshotFile::Head() const {
  std::string head(reinterpret_cast<const char*>(memory_), static_cast<size_t>(head_bytes_));
  Header header;
  std::memcpy(&header, head.data(), sizeof header);
  header.state = kComplete;
  header.tables = TablesDigest(memory_ + kPageBytes, header.atoms);
  header.digest = PageDigest(header);
  std::memcpy(head.data(), &header, sizeof header);
  return head;
}

absl::Status SnapshotFile::TakeHead(std::string_view head) {
  PERDURE_CHECK(head.size() == static_cast<size_t>(head_bytes_));
  Header got;
  std::memcpy(&got, head.data(), sizeof got);
  const std::string of = path_ + ", as its owner sent it";
  if (const absl::Status checked = CheckPage(got, of); !checked.ok())
    return absl::IsDataLoss(checked) ? checked : DataLoss("{}", Message(checked));
  auto& mine = *reinterpret_cast<Header*>(memory_);
  SnapshotStamp expected = StampOf(mine);
  expected.history = StampOf(got).history;
  if (StampOf(got) != expected)
    return DataLoss("snapshot {} is of generation {}, step {}, rank {}; due was {}, {}, {}", of,
                    got.generation, got.step, got.rank, mine.generation, mine.step, mine.rank);
  const std::byte* tables = reinterpret_cast<const std::byte*>(head.data()) + kPageBytes;
  if (got.atoms != mine.atoms || got.elements != mine.elements ||
      std::memcmp(tables, memory_ + kPageBytes, atoms_.size() * sizeof(int64_t)) != 0)
    return DataLoss("snapshot {}: index has {} atoms of {} elements that are not this rank's", of,
                    got.atoms, got.elements);
  if (got.tables != TablesDigest(tables, got.atoms))
    return DataLoss("snapshot {}: digest of index and digests is wrong", of);
  mine.sample_chain = got.sample_chain;
  mine.steps = got.steps;
  mine.history = got.history;
  mine.recent = got.recent;
  mine.trail = got.trail;
  std::memcpy(digests().data(), tables + atoms_.size() * sizeof(int64_t),
              atoms_.size() * sizeof(Digest));
  return absl::OkStatus();
}

void SnapshotFile::Complete() {
  auto& header = *reinterpret_cast<Header*>(memory_);
  PERDURE_CHECK(state().load(std::memory_order_relaxed) == kWriting);
  header.tables = TablesDigest(memory_ + kPageBytes, header.atoms);
  header.digest = PageDigest(header);
  state().store(kComplete, std::memory_order_release);
}

// ---- the reader's side

absl::StatusOr<std::unique_ptr<SnapshotReader>> SnapshotReader::Open(const std::string& path,
                                                                     const AtomTable* table) {
  std::unique_ptr<SnapshotReader> reader(new SnapshotReader(path));
  ASSIGN_OR_RETURN(OpenSnapshot open, OpenComplete(path));
  const Header& header = open.header;
  const auto count = static_cast<size_t>(header.atoms);
  std::vector<std::byte> tables(count * kIndexBytes);
  RETURN_IF_ERROR(ReadBytes(open.file, kPageBytes, tables.data(), tables.size()));
  if (header.tables != TablesDigest(tables.data(), header.atoms))
    return DataLoss("snapshot {}: digest of index and digests is wrong; it is not used", path);
  reader->table_ = table;
  reader->stamp_ = StampOf(header);
  reader->elements_ = header.elements;
  reader->data_offset_ = HeadBytes(header.atoms);
  reader->atoms_.resize(count);
  reader->digests_.resize(count);
  if (count > 0) {
    std::memcpy(reader->atoms_.data(), tables.data(), count * sizeof(int64_t));
    std::memcpy(reader->digests_.data(), tables.data() + count * sizeof(int64_t),
                count * sizeof(Digest));
  }
  int64_t elements = 0;
  for (size_t i = 0; i < count; ++i) {
    const int64_t atom = reader->atoms_[i];
    if (atom < 0 || static_cast<size_t>(atom) >= table->atoms().size())
      return DataLoss("snapshot {}: index has atom {} of {}; it is not used", path, atom,
                      table->atoms().size());
    reader->begins_.push_back(elements);
    reader->by_atom_.emplace_back(atom, i);
    elements += CountOf(*table, atom);
  }
  std::sort(reader->by_atom_.begin(), reader->by_atom_.end());
  for (size_t i = 1; i < count; ++i)
    if (reader->by_atom_[i].first == reader->by_atom_[i - 1].first)
      return DataLoss("snapshot {}: index has atom {} twice; it is not used", path,
                      reader->by_atom_[i].first);
  if (elements != header.elements)
    return DataLoss("snapshot {}: elements is {}, its atoms have {}; it is not used", path,
                    header.elements, elements);
  reader->file_ = std::move(open.file);
  return reader;
}

absl::Status SnapshotReader::Read(std::span<const AtomState> wanted, int threads) const {
  const auto read = [&](size_t i) -> absl::Status {
    const int64_t atom = wanted[i].atom;
    const auto at = std::lower_bound(by_atom_.begin(), by_atom_.end(), std::pair(atom, size_t{0}));
    if (at == by_atom_.end() || at->first != atom)
      return DataLoss("snapshot {} of rank {}: atom {} is not in it", path_, stamp_.rank, atom);
    return ReadAtom(wanted[i], at->second);
  };
  return ForEachInParallel(wanted.size(), read, static_cast<size_t>(std::max(threads, 1)));
}

absl::Status SnapshotReader::ReadAtom(const AtomState& wanted, size_t position) const {
  const int64_t count = CountOf(*table_, wanted.atom);
  for (int part = 0; part < kStatePartCount; ++part) {
    const int64_t element = part * elements_ + begins_[position];
    RETURN_IF_ERROR(ReadBytes(file_, data_offset_ + element * static_cast<int64_t>(sizeof(float)),
                              wanted.parts[static_cast<size_t>(part)],
                              static_cast<size_t>(count) * sizeof(float)));
  }
  if (AtomDigest(wanted, count) != digests_[position])
    return DataLoss("snapshot {} of rank {}, step {}: atom {} is not what its digest says", path_,
                    stamp_.rank, stamp_.step, wanted.atom);
  return absl::OkStatus();
}

}  // namespace perdure
