#include "runtime/train/snapshots.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "kernels/word_sum.h"
#include "runtime/base/check.h"
#include "runtime/base/parallel.h"
#include "runtime/base/status.h"
#include "runtime/train/corruption.h"

namespace perdure {
namespace {

// Operations on the group: a rank has one peer, so between two ranks and in one direction there is
// at most one message of each.
constexpr uint32_t kHead = 0, kFirstPart = 1;

constexpr size_t kWhyBytes = 512;  // Of what is said of a lack of room.

std::vector<int64_t> IndicesOf(std::span<const AtomState> atoms) {
  std::vector<int64_t> indices;
  for (const AtomState& state : atoms) indices.push_back(state.atom);
  return indices;
}

// Whether this rank keeps a part of its ward itself: all atoms are alike.
bool Keeps(const Snapshots::Ward& ward, int part) {
  return !ward.atoms.empty() && ward.atoms.front().parts[static_cast<size_t>(part)] != nullptr;
}

bool KeepsAny(const Snapshots::Ward& ward) {
  for (int part = 0; part < kStatePartCount; ++part)
    if (Keeps(ward, part)) return true;
  return false;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Snapshots>> Snapshots::Create(
    const Options& options, const AtomTable* table, std::vector<AtomState> own,
    std::vector<Ward> wards, Gathered gathered, Ops* ops, Group* group) {
  const auto rank = static_cast<size_t>(group->index());
  PERDURE_CHECK(options.peers.empty() ||
                (options.peers.size() == static_cast<size_t>(group->size()) &&
                 options.peers[rank] != group->index()));
  std::unique_ptr<Snapshots> snapshots(
      new Snapshots(options, table, std::move(own), std::move(gathered), ops, group));
  for (Ward& ward : wards) {
    PERDURE_CHECK(ward.rank != group->index() &&
                  options.peers[static_cast<size_t>(ward.rank)] == group->index());
    snapshots->kept_.push_back({.ward = std::move(ward)});
  }
  RETURN_IF_ERROR(snapshots->MakeRoom(0));
  return snapshots;
}

Snapshots::Snapshots(const Options& options, const AtomTable* table, std::vector<AtomState> own,
                     Gathered gathered, Ops* ops, Group* group)
    : options_(options),
      table_(table),
      own_(std::move(own)),
      gathered_(std::move(gathered)),
      ops_(ops),
      group_(group),
      thread_([this] { Work(); }) {}

Snapshots::~Snapshots() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    changed_.notify_all();
  }
  thread_.join();
  for (size_t at = 0; at < kBuffers; ++at) {
    for (Kept& kept : kept_)
      if (kept.files[at] != nullptr && Downloads(kept.ward.atoms))
        ops_->UnpinHost(kept.files[at]->Pages().data());
    if (files_[at] != nullptr && Downloads(own_)) ops_->UnpinHost(files_[at]->Pages().data());
  }
  // No peer may write into memory that is given back.
  Transport* transport = group_->transport();
  for (int peer = 0; !requests_.empty() && peer < transport->size(); ++peer)
    if (peer != transport->rank()) transport->FailPeer(peer, "its snapshots were dropped");
}

int64_t Snapshots::MemoryOf(const SnapshotConfig& config, int64_t elements) {
  if (config.every == 0) return 0;
  const int64_t bytes = elements * kStatePartCount * static_cast<int64_t>(sizeof(float));
  return bytes * kBuffers * (config.peers ? 2 : 1);
}

absl::StatusOr<std::unique_ptr<SnapshotFile>> Snapshots::NewFile(
    int32_t rank, int buffer, std::span<const AtomState> atoms) const {
  const std::string name = SnapshotFileName(options_.generation, rank, buffer);
  return SnapshotFile::Create((std::filesystem::path(options_.directory) / name).string(), table_,
                              IndicesOf(atoms));
}

// Whether the device writes such atoms' state into their file.
bool Snapshots::Downloads(std::span<const AtomState> atoms) const {
  return !ops_->DeviceIsHost() && !atoms.empty() &&
         std::any_of(atoms.front().parts.begin(), atoms.front().parts.end(),
                     [](const float* part) { return part != nullptr; });
}

absl::Status Snapshots::MakeRoom(int buffer) {
  const auto at = static_cast<size_t>(buffer);
  if (files_[at] != nullptr) return absl::OkStatus();
  absl::Status made = MakeFiles(buffer);
  if (made.ok() || absl::IsResourceExhausted(made)) {
    // All say why, so that whoever tells it knows.
    std::string mine = made.ok() ? "" : Message(made);
    mine.resize(kWhyBytes, '\0');
    mine.back() = '\0';
    std::string all(kWhyBytes * static_cast<size_t>(group_->size()), '\0');
    RETURN_IF_ERROR(group_->AllGather(mine.data(), mine.size(), all.data()));
    for (size_t of = 0; of < static_cast<size_t>(group_->size()) && made.ok(); ++of)
      if (const char* why = all.data() + of * kWhyBytes; *why != '\0')
        made = ResourceExhausted("rank {}: {}", of, why);
  }
  const auto each = [&](const auto& what) {
    for (Kept& kept : kept_)
      if (kept.files[at] != nullptr) what(kept.files[at], kept.ward.atoms);
    if (files_[at] != nullptr) what(files_[at], own_);
  };
  if (made.ok())
    each([this](std::unique_ptr<SnapshotFile>& file, std::span<const AtomState> atoms) {
      const std::span<std::byte> pages = file->Pages();
      if (Downloads(atoms)) ops_->PinHost(pages.data(), pages.size());
    });
  else
    each([](std::unique_ptr<SnapshotFile>& file, std::span<const AtomState>) {
      ::unlink(file->path().c_str());
      file.reset();
    });
  return made;
}

absl::Status Snapshots::MakeFiles(int buffer) {
  const auto at = static_cast<size_t>(buffer);
  for (Kept& kept : kept_) {
    ASSIGN_OR_RETURN(kept.files[at], NewFile(kept.ward.rank, buffer, kept.ward.atoms));
  }
  ASSIGN_OR_RETURN(files_[at], NewFile(group_->index(), buffer, own_));
  return absl::OkStatus();
}

absl::Status Snapshots::Begin(int64_t step, const StepHistory& history) {
  PERDURE_CHECK(!under_way_);
  // The second ones are made when they are needed: by then those of the generation before may be
  // gone.
  RETURN_IF_ERROR(MakeRoom(buffer_));
  SnapshotFile& file = *files_[static_cast<size_t>(buffer_)];
  SnapshotStamp stamp{.run_id = options_.run_id,
                      .generation = options_.generation,
                      .step = step,
                      .rank = group_->index()};
  if (stamp.rank == 0) stamp.history = history;
  file.Begin(stamp);
  stamp.history = {};
  for (Kept& kept : kept_) {
    stamp.rank = kept.ward.rank;
    kept.files[static_cast<size_t>(buffer_)]->Begin(stamp);
    Receive(kept);
  }
  if (!ops_->DeviceIsHost()) StateCopy(own_, *table_, file.Part(0).data()).DownloadBehind(ops_);
  under_way_ = true;
  copying_wards_ = sent_ = false;
  Hand(&Snapshots::own_job_);
  return absl::OkStatus();
}

// What comes by message goes to its place in the file, but for the head: only when all is there may
// the file say so.
void Snapshots::Receive(Kept& kept) {
  SnapshotFile& file = *kept.files[static_cast<size_t>(buffer_)];
  for (int part = 0; part < kStatePartCount; ++part) {
    const std::span<std::byte> bytes = file.Part(part);
    if (!Keeps(kept.ward, part) && !bytes.empty())
      requests_.push_back(group_->Recv(kept.ward.rank, kFirstPart + static_cast<uint32_t>(part),
                                       bytes.data(), bytes.size()));
  }
  kept.head.resize(static_cast<size_t>(file.head_bytes()));
  requests_.push_back(group_->Recv(kept.ward.rank, kHead, kept.head.data(), kept.head.size()));
}

absl::Status Snapshots::Advance() {
  if (!under_way_) return absl::OkStatus();
  RETURN_IF_ERROR(CopyWards(false));
  if (Done(&Snapshots::own_job_)) Send();
  group_->transport()->Progress();
  return absl::OkStatus();
}

// Has the thread copy what this rank keeps of its wards' state, once that is what it should be.
absl::Status Snapshots::CopyWards(bool wait) {
  if (copying_wards_) return absl::OkStatus();
  bool any = false;
  for (const Kept& kept : kept_) any = any || KeepsAny(kept.ward);
  if (any) {
    ASSIGN_OR_RETURN(const bool gathered, gathered_(wait));
    if (!gathered) return absl::OkStatus();
    if (!ops_->DeviceIsHost())
      for (const Kept& kept : kept_)
        StateCopy(kept.ward.atoms, *table_,
                  kept.files[static_cast<size_t>(buffer_)]->Part(0).data())
            .DownloadBehind(ops_);
    Hand(&Snapshots::wards_job_);
  }
  copying_wards_ = true;
  return absl::OkStatus();
}

// REQUIRES: the own copy and its digests are done.
void Snapshots::Send() {
  if (sent_) return;
  sent_ = true;
  SnapshotFile& file = *files_[static_cast<size_t>(buffer_)];
  file.Complete();
  if (options_.peers.empty()) return;
  const int peer = options_.peers[static_cast<size_t>(group_->index())];
  for (int part = 0; part < kStatePartCount; ++part) {
    const std::span<std::byte> bytes = file.Part(part);
    if (!options_.peer_keeps[static_cast<size_t>(part)] && !bytes.empty())
      requests_.push_back(
          group_->Send(peer, kFirstPart + static_cast<uint32_t>(part), bytes.data(), bytes.size()));
  }
  head_ = file.Head();
  requests_.push_back(group_->Send(peer, kHead, head_.data(), head_.size()));
}

absl::Status Snapshots::Await() {
  if (!under_way_) return absl::OkStatus();
  RETURN_IF_ERROR(CopyWards(true));
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !own_job_ || !status_.ok(); });
    RETURN_IF_ERROR(status_);
  }
  Send();
  RETURN_IF_ERROR(group_->WaitAll(requests_));
  requests_.clear();
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !wards_job_ || !status_.ok(); });
    RETURN_IF_ERROR(status_);
  }
  for (Kept& kept : kept_) {
    SnapshotFile& file = *kept.files[static_cast<size_t>(buffer_)];
    RETURN_IF_ERROR(file.TakeHead(kept.head));
    file.Complete();
  }
  buffer_ = 1 - buffer_;
  under_way_ = false;
  return absl::OkStatus();
}

void Snapshots::Distrust() {
  if (under_way_) return;  // Those of it say `writing` as it is.
  for (Kept& kept : kept_)
    for (const std::unique_ptr<SnapshotFile>& file : kept.files)
      if (file != nullptr && KeepsAny(kept.ward) &&
          file != kept.files[static_cast<size_t>(buffer_)])
        file->Void();
}

// ---- the thread

void Snapshots::Hand(bool Snapshots::*job) {
  const std::lock_guard lock(mutex_);
  this->*job = true;
  changed_.notify_all();
}

bool Snapshots::Done(bool Snapshots::*job) {
  const std::lock_guard lock(mutex_);
  return !(this->*job) && status_.ok();
}

void Snapshots::Work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return own_job_ || wards_job_ || stop_; });
    if (stop_) return;
    const bool own = own_job_;
    lock.unlock();
    const absl::Status status = own ? CopyOwn() : CopyKept();
    lock.lock();
    if (!status.ok()) {
      status_ = status;
      stop_ = true;
    }
    (own ? own_job_ : wards_job_) = false;
    changed_.notify_all();
  }
}

absl::Status Snapshots::CopyOwn() {
  SnapshotFile& file = *files_[static_cast<size_t>(buffer_)];
  if (!ops_->DeviceIsHost()) RETURN_IF_ERROR(ops_->SyncDownloads());
  return CopyAtoms(own_, file, true);
}

absl::Status Snapshots::CopyKept() {
  if (!ops_->DeviceIsHost()) return ops_->SyncDownloads();
  for (const Kept& kept : kept_)
    RETURN_IF_ERROR(CopyAtoms(kept.ward.atoms, *kept.files[static_cast<size_t>(buffer_)], false));
  return absl::OkStatus();
}

// The copy, where device memory is the host's; and of whole atoms the digest, while they are in the
// processor's reach.
absl::Status Snapshots::CopyAtoms(std::span<const AtomState> from, SnapshotFile& file,
                                  bool digest) const {
  const std::span<const AtomState> to = file.atoms();
  const bool copies = ops_->DeviceIsHost();
  const auto copy = [&](size_t i) {
    const int64_t count = table_->atoms()[static_cast<size_t>(from[i].atom)].count;
    for (size_t part = 0; copies && part < kStatePartCount; ++part)
      if (from[i].parts[part] != nullptr)
        std::memcpy(to[i].parts[part], from[i].parts[part],
                    static_cast<size_t>(count) * sizeof(float));
    if (!digest) return absl::OkStatus();
    file.digests()[i] = AtomDigest(to[i], count);
    // Behind the digest: whatever it was made of must be what the update left.
    for (size_t part = 0; part < kStatePartCount && !options_.sums.empty(); ++part)
      if (WordSum(to[i].parts[part], static_cast<size_t>(count) * sizeof(float)) !=
          options_.sums[i][part])
        return Corruption(fmt::format(
            "atom {} is no longer what the last update left in memory, or its copy in {} is not",
            to[i].atom, file.path()));
    return absl::OkStatus();
  };
  return ForEachInParallel(from.size(), copy, static_cast<size_t>(options_.host_threads));
}

}  // namespace perdure
