// A rank's snapshots: after a step, a copy of the state that it answers for, in shared memory of
// its own node and, sent to its peer, in that of another. Beside the next step.
//
// A rank has two files for its own snapshots and two for each of its wards' (whose peer it is);
// they take turns. Call the snapshot of step k whole when every rank's file of k is complete, its
// own and the one at its peer. The rule: a rank enters the gather of a step only when Await() has
// returned, so when all its own sends and all its wards' messages of the snapshot before are done,
// and both files are complete. What follows, where j < k are the last two steps that have a
// snapshot:
//
//  (1) Whoever is past the gather of a step behind k knows that k is whole: every rank entered that
//      gather, so every rank's own file of k is complete, and so is every ward's at its peer.
//  (2) Files of j are overwritten by the snapshot that comes behind k, own ones and wards'. Begin()
//      of that one stands behind the gather of its step, which lies behind k. By (1) k is whole
//      then, and its files are the other two.
//  (3) Before that, nobody touches a file of j; and j is whole, because k's Begin() stands behind a
//      gather behind j.
//
// So at any instant, whoever is killed, j or k is whole: by (3) j until the first rank begins the
// snapshot behind k, by (2) k from then on. With a snapshot after every step k is the last step
// that any rank has finished, or the one before. A file that its writer was killed over says
// `writing`, not `complete` (snapshot_file.h), and a rank's files at two nodes are written apart:
// own ones by copying its state, the peer's from the network, so that no death can spoil both.
//
// A generation's first snapshot is of what it starts from, before its first step. Once its first
// gather has passed, (1) says that this one is whole; then those of older generations may go, and
// not before.
//
// What a peer keeps itself of its ward's state (ZeRO replicates it in their data group) is not sent
// but copied from its own state; digests come from the owner all the same.
//
// The trainer's thread calls; a thread of its own copies and digests. Whoever changes the state
// calls Await() before. The order of members of whoever owns this: state and group outlive it.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "runtime/comm/group.h"
#include "runtime/train/run_config.h"
#include "runtime/train/snapshot_file.h"
#include "runtime/train/state_copy.h"

namespace perdure {

class Snapshots {
 public:
  struct Options {
    std::string directory;  // There already; of this node.
    std::string run_id;
    uint64_t generation = 0;
    std::vector<int32_t> peers;  // By rank; empty: nobody keeps another's.
    // Parts of this rank's state that its peer keeps itself: not sent.
    std::array<bool, kStatePartCount> peer_keeps{};
    int host_threads = 1;
    // By atom of the own ones, in their order: the sums of its parts as StateGuard has them when a
    // snapshot begins, until it was awaited. Empty: the copies are compared with nothing.
    std::vector<const uint64_t*> sums;
  };
  // A rank whose snapshots this one keeps.
  struct Ward {
    int32_t rank = 0;
    // What it answers for, in its order. Parts that this rank keeps itself point to its state, in
    // device memory; the others are null and are sent.
    std::vector<AtomState> atoms;
  };
  // Whether the parts that wards' atoms point to hold what the step before left; with `wait`, makes
  // it so.
  using Gathered = std::function<absl::StatusOr<bool>(bool wait)>;

  // `own`: what this rank answers for, in device memory. `group`: all ranks, by rank; nothing else
  // uses its operations. Makes the first file of each. ResourceExhausted, at all ranks alike: a
  // rank, which is named, has no room for them; without its snapshots the others' are of no use.
  static absl::StatusOr<std::unique_ptr<Snapshots>> Create(
      const Options& options, const AtomTable* table, std::vector<AtomState> own,
      std::vector<Ward> wards, Gathered gathered, Ops* ops, Group* group);
  // What is under way is given up: lost peers are told to the transport.
  ~Snapshots();
  Snapshots(const Snapshots&) = delete;
  Snapshots& operator=(const Snapshots&) = delete;

  // Starts the snapshot of the state as it is now. The chain is kept by rank 0 alone. REQUIRES: the
  // one before was awaited. ResourceExhausted, at all ranks alike: as of Create, for the second
  // files; the first ones stay.
  absl::Status Begin(int64_t step, const StepHistory& history);
  // Lets it advance; never blocks. Between pieces of compute.
  absl::Status Advance();
  // Corruption: what was copied is not what the last update left in memory; then no file of this
  // rank says that it is complete. Returns when it is whole as far as this rank can know: see
  // above. At once where none was begun. REQUIRES: the device is idle, or cannot wait for a rank
  // that is lost.
  absl::Status Await();

  // This rank's memory has gone wrong, or what it was sent, perhaps before the last snapshot's
  // parts that it copied from its own state for its wards: their files are none any more. Its own
  // were compared.
  void Distrust();

  // Host bytes of a rank that owns so many elements, and whose wards do.
  static int64_t MemoryOf(const SnapshotConfig& config, int64_t elements);

 private:
  static constexpr int kBuffers = 2;
  struct Kept {  // A ward.
    Ward ward;
    std::array<std::unique_ptr<SnapshotFile>, kBuffers> files;
    std::string head;  // As its owner sends it.
  };

  Snapshots(const Options& options, const AtomTable* table, std::vector<AtomState> own,
            Gathered gathered, Ops* ops, Group* group);
  absl::StatusOr<std::unique_ptr<SnapshotFile>> NewFile(int32_t rank, int buffer,
                                                        std::span<const AtomState> atoms) const;
  absl::Status MakeFiles(int buffer);
  absl::Status MakeRoom(int buffer);
  bool Downloads(std::span<const AtomState> atoms) const;
  void Receive(Kept& kept);
  absl::Status CopyWards(bool wait);
  void Send();
  void Hand(bool Snapshots::*job);
  bool Done(bool Snapshots::*job);
  void Work();
  absl::Status CopyOwn();
  absl::Status CopyKept();
  absl::Status CopyAtoms(std::span<const AtomState> from, SnapshotFile& file, bool digest) const;

  const Options options_;
  const AtomTable* table_;
  const std::vector<AtomState> own_;
  const Gathered gathered_;
  Ops* ops_;
  Group* group_;
  std::array<std::unique_ptr<SnapshotFile>, kBuffers> files_;
  std::vector<Kept> kept_;
  std::string head_;  // As it is sent.

  int buffer_ = 0;          // Of the one under way, or of the next.
  bool under_way_ = false;  // Between Begin and Await.
  bool copying_wards_ = false, sent_ = false;
  std::vector<RequestPtr> requests_;

  std::mutex mutex_;  // Guards what follows.
  std::condition_variable changed_;
  bool own_job_ = false, wards_job_ = false;  // What the thread is to do, or does.
  bool stop_ = false;
  absl::Status status_;
  std::thread thread_;
};

}  // namespace perdure
