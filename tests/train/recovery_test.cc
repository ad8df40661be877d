// Generations that end without a checkpoint: what the next one, of any layout, makes of the
// snapshots must be the bits of a run that nobody disturbed.
#include <gtest/gtest.h>
#include <unistd.h>

#include <bit>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <thread>

#include "runtime/base/status.h"
#include "tests/kernels/device_ops.h"
#include "tests/prng.h"
#include "tests/train/forwarding_host.h"
#include "tests/train/recovery_world.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

struct Layout {
  int64_t tensor, pipeline, data, zero, virtual_stages = 1;
  int ranks_per_node = 1;
};

LayoutConfig At(const Layout& l) {
  return {.tensor = l.tensor,
          .pipeline = l.pipeline,
          .data = l.data,
          .zero = l.zero,
          .virtual_stages = l.virtual_stages,
          .transport = "local"};
}

std::string Name(const Layout& l) {
  return fmt::format("t{}p{}d{}z{}v{}n{}", l.tensor, l.pipeline, l.data, l.zero, l.virtual_stages,
                     l.ranks_per_node);
}

// Tells all to leave after `step`.
std::function<Command(int64_t)> LeaveAfter(int64_t step) {
  return [step](int64_t done) { return done == step - 1 ? Command::kLeave : Command::kNone; };
}

class RecoveryTest : public testing::Test {
 protected:
  // Alone, with a checkpoint after every step.
  TrainingResult Reference(RunConfig config) {
    config.checkpoint.every_steps = 1;
    TrainingResult result =
        Train(config, directory_, directory_ + "/reference-" + config.numerics.dtype, "", -1);
    EXPECT_TRUE(result.status.ok()) << result.status;
    return result;
  }
  std::string World(const std::string& name) const { return folder_.World(name); }

  void LeaveAgainAndAgain(const std::string& name, const RunConfig& config,
                          const TrainingResult& reference, const std::vector<Layout>& layouts,
                          const OpsFactory& make_ops);

  const TinyFolder folder_{"recovery_test"};
  const std::string directory_ = folder_.path();
};

// One generation per layout, each two steps long but for the last, and each begins with what the
// one before has left in memory.
void RecoveryTest::LeaveAgainAndAgain(const std::string& name, const RunConfig& config,
                                      const TrainingResult& reference,
                                      const std::vector<Layout>& layouts,
                                      const OpsFactory& make_ops) {
  RecoveryWorld world(World(name), config);
  std::vector<uint64_t> losses;
  TrainingJob before;
  for (size_t i = 0; i < layouts.size(); ++i) {
    const Layout& layout = layouts[i];
    SCOPED_TRACE(fmt::format("{}: {}", name, Name(layout)));
    const auto step = static_cast<int64_t>(2 * i), leave = step + 2;
    const bool last = i + 1 == layouts.size();
    TrainingJob job = i == 0 ? world.Job(1, At(layout), layout.ranks_per_node)
                             : world.Resume(i + 1, At(layout), layout.ranks_per_node, before, step);
    job.make_ops = make_ops;
    if (!last) job.command = LeaveAfter(leave);
    const TrainingResult result = RunJob(job);
    ASSERT_TRUE(result.status.ok()) << result.status;
    ASSERT_TRUE(result.loaded.has_value());
    EXPECT_EQ(step == 0 || result.loaded == reference.certificates.at(step), true);
    losses.insert(losses.end(), result.loss_bits.begin(), result.loss_bits.end());
    if (last) {
      EXPECT_EQ(result.certificate.Hex(), reference.certificate.Hex());
      continue;
    }
    for (const auto& outcome : result.outcomes) EXPECT_EQ(outcome, Outcome::kLeft);
    EXPECT_TRUE(result.certificates.empty());
    EXPECT_EQ(world.NewestWhole(job), leave);
    const int nodes = world.NodeOf(job, static_cast<int>(job.config.layout.ranks()) - 1) + 1;
    EXPECT_EQ(job.snapshot_peers.empty(), nodes == 1);
    for (int node = 0; nodes > 1 && node < nodes; ++node) {
      EXPECT_EQ(world.NewestWhole(job, node), leave);
      const absl::StatusOr<Digest> held = world.CertificateOf(job, leave, node);
      ASSERT_TRUE(held.ok()) << held.status();
      EXPECT_EQ(held->Hex(), reference.certificates.at(leave).Hex());
    }
    // One node is lost: another one each time.
    if (nodes > 1) world.LoseNode(static_cast<int>(i) % nodes);
    before = job;
  }
  EXPECT_EQ(losses, reference.loss_bits);
}

OpsFactory Cpu() {
  return [] { return NewCpuOps(1); };
}

TEST_F(RecoveryTest, AnyLayoutGoesOnFromAnyOthersSnapshots) {
  const RunConfig config = TinyConfig();
  const TrainingResult reference = Reference(config);
  LeaveAgainAndAgain("one", config, reference,
                     {{1, 1, 1, 1}, {1, 1, 2, 0}, {2, 2, 2, 1, 1, 2}, {1, 1, 3, 3}, {4, 1, 1, 0}},
                     Cpu());
  LeaveAgainAndAgain("two", config, reference,
                     {{1, 1, 3, 2}, {1, 2, 2, 3, 2, 2}, {1, 1, 5, 1}, {2, 1, 2, 0}, {1, 4, 1, 1}},
                     Cpu());
}

TEST_F(RecoveryTest, TheSameInBf16) {
  const RunConfig config = TinyConfig("bf16");
  LeaveAgainAndAgain("bf16", config, Reference(config),
                     {{1, 1, 3, 0}, {2, 1, 3, 1, 1, 2}, {1, 2, 2, 2}, {1, 1, 5, 3}, {1, 1, 2, 2}},
                     Cpu());
}

TEST_F(RecoveryTest, TheSameInDeviceMemory) {
  const OpsFactory device = [] { return std::make_unique<DeviceOps>(); };
  for (const char* dtype : {"fp32", "bf16"}) {
    const RunConfig config = TinyConfig(dtype);
    LeaveAgainAndAgain(fmt::format("device-{}", dtype), config, Reference(config),
                       {{1, 1, 1, 0}, {1, 1, 1, 1}, {1, 1, 1, 2}, {1, 1, 1, 3}}, device);
  }
}

// The generation's own whole snapshot is there when older ones may go, and not before.
TEST_F(RecoveryTest, OlderOnesMayGoWhenTheNewerAreWhole) {
  const RunConfig config = TinyConfig();
  RecoveryWorld world(World("older"), config);
  const Layout layout = {1, 1, 2, 1}, next = {2, 1, 2, 1};
  TrainingJob first = world.Job(1, At(layout), 1);
  first.command = LeaveAfter(3);
  ASSERT_TRUE(RunJob(first).status.ok());
  TrainingJob second = world.Resume(2, At(next), 1, first, 3);
  second.command = LeaveAfter(5);
  class Host final : public ForwardingHost {
   public:
    Host(std::unique_ptr<RankHost> finds, const RecoveryWorld* world, std::atomic<int>* told)
        : ForwardingHost(finds.get()), finds_(std::move(finds)), world_(world), told_(told) {}
    void OlderMayGo() override {
      ++*told_;
      EXPECT_EQ(world_->Held(2)[3].size(), 4);
      for (int node = 0; node < 4; ++node) EXPECT_EQ(world_->Held(2, node)[3].size(), 4);
    }
    void Progress(int64_t step, const WorkDone&) override { EXPECT_EQ(step >= 4, *told_ > 0); }

   private:
    std::unique_ptr<RankHost> finds_;
    const RecoveryWorld* world_;
    std::atomic<int>* told_;
  };
  std::atomic<int> told = 0;
  second.wrap_host = [&, find = second.wrap_host](int rank, RankHost* host) {
    return std::make_unique<Host>(find(rank, host), &world, &told);
  };
  const TrainingResult result = RunJob(second);
  ASSERT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(told, 4);
}

// A checkpoint that was due when the generation before ended is the next one's first act.
TEST_F(RecoveryTest, ADueCheckpointIsNotForgotten) {
  RunConfig config = TinyConfig();
  const TrainingResult reference = Reference(config);
  config.checkpoint.export_steps = {3};
  RecoveryWorld world(World("due"), config);
  const Layout layout = {1, 1, 2, 1};
  TrainingJob first = world.Job(1, At(layout), 1);
  first.command = LeaveAfter(3);
  const TrainingResult left = RunJob(first);
  ASSERT_TRUE(left.status.ok()) << left.status;
  EXPECT_TRUE(left.certificates.empty());
  for (const bool committed : {false, true}) {
    TrainingJob second = world.Resume(committed ? 3 : 2, At(layout), 1, first, 3);
    second.start.held->committed = committed;
    second.until_step = 4;
    const TrainingResult result = RunJob(second);
    ASSERT_TRUE(result.status.ok()) << result.status;
    EXPECT_EQ(result.certificates.contains(3), !committed);
    if (!committed) {
      EXPECT_EQ(result.certificates.at(3), reference.certificates.at(3));
    }
    EXPECT_EQ(result.certificates.at(4), reference.certificates.at(4));
  }
}

// Every few steps only, and at the end of a generation whatever the count.
TEST_F(RecoveryTest, EveryFewSteps) {
  RunConfig config = TinyConfig();
  const TrainingResult reference = Reference(config);
  config.snapshot.every = 3;
  RecoveryWorld world(World("few"), config);
  TrainingJob first = world.Job(1, At({1, 1, 2, 1}), 1);
  std::vector<int64_t> newest;
  first.command = [&](int64_t step) {
    newest.push_back(world.NewestWhole(first).value_or(-1));
    return LeaveAfter(5)(step);
  };
  const TrainingResult result = RunJob(first);
  ASSERT_TRUE(result.status.ok()) << result.status;
  // Whole is known only at the next gather; the one of step 3 may be so at once.
  ASSERT_EQ(newest.size(), 5);
  EXPECT_EQ(newest[0], 0);
  EXPECT_EQ(newest[1], 0);
  EXPECT_TRUE(newest[2] == 0 || newest[2] == 3);
  EXPECT_EQ(newest[3], 3);
  EXPECT_EQ(world.NewestWhole(first), 5);
  const absl::StatusOr<Digest> held = world.CertificateOf(first, 5);
  ASSERT_TRUE(held.ok()) << held.status();
  EXPECT_EQ(*held, reference.certificates.at(5));
}

TEST_F(RecoveryTest, WhatIsMissingOrWrongIsRefused) {
  const RunConfig config = TinyConfig();
  RecoveryWorld world(World("wrong"), config);
  const Layout layout = {1, 1, 2, 3}, next = {2, 1, 1, 1, 1, 2};
  TrainingJob first = world.Job(1, At(layout), 1);
  first.command = LeaveAfter(2);
  ASSERT_TRUE(RunJob(first).status.ok());
  uint64_t generation = 1;
  const auto resume = [&](int64_t step) {
    return RunJob(world.Resume(++generation, At(next), 2, first, step));
  };
  // Both new ranks are on node 0, which has all files.
  const std::string path = world.Find(1, 2, 1, 0);
  ASSERT_TRUE(path.starts_with(world.NodeDirectory(0)));
  const auto flip = [&](int64_t at) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(at);
    const char byte = static_cast<char>(file.get() ^ 4);
    file.seekp(at);
    file.put(byte);
  };
  const auto size = static_cast<int64_t>(fs::file_size(path));
  flip(size - 6);
  const TrainingResult data = resume(2);
  EXPECT_TRUE(absl::IsDataLoss(data.status)) << data.status;
  EXPECT_NE(Message(data.status).find(path + " of rank 1, step 2: atom "), std::string::npos)
      << data.status;
  flip(size - 6);
  flip(4096 + 1);
  const TrainingResult index = resume(2);
  EXPECT_TRUE(absl::IsDataLoss(index.status)) << index.status;
  EXPECT_NE(Message(index.status).find(path), std::string::npos) << index.status;
  flip(4096 + 1);
  // A step that nobody holds; then the right one is fine.
  EXPECT_TRUE(absl::IsNotFound(resume(4).status));
  TrainingJob fine = world.Resume(++generation, At(next), 2, first, 2);
  fine.until_step = 3;
  const TrainingResult result = RunJob(fine);
  EXPECT_TRUE(result.status.ok()) << result.status;
  // Another run's, and another layout's.
  for (const auto& [what, change] :
       std::initializer_list<std::pair<const char*, std::function<void(HeldStart&)>>>{
           {"index is of", [](HeldStart& start) { std::swap(start.pipeline, start.data); }},
           {"no snapshot", [](HeldStart& start) { start.data = 3; }}}) {
    TrainingJob job = world.Resume(++generation, At(next), 2, first, 2);
    change(*job.start.held);
    const TrainingResult refused = RunJob(job);
    EXPECT_NE(Message(refused.status).find(what), std::string::npos) << refused.status;
  }
}

// A checkpoint whose manifest tells another certificate than its atoms have.
TEST_F(RecoveryTest, EveryRankKnowsTheCertificate) {
  const RunConfig config = TinyConfig();
  const TrainingResult reference = Reference(config);
  RecoveryWorld world(World("certificate"), config);
  TrainingJob job = world.Job(1, At({2, 1, 2, 1}), 2);
  job.start = RecoveryWorld::FromCheckpoint(reference.checkpoint);
  job.start.manifest->certificate.bytes[3] ^= 1;
  const TrainingResult result = RunJob(job);
  for (const absl::Status& status : result.statuses) {
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    EXPECT_EQ(Message(status),
              fmt::format("certificate after loading {} is {}, its manifest says {}: nothing was "
                          "trained",
                          reference.checkpoint, reference.certificate.Hex(),
                          job.start.manifest->certificate.Hex()));
  }
  EXPECT_FALSE(result.loaded.has_value());
}

// ---- stop, lease

// Counts what ranks do, and lets somebody wait for a count.
class Count {
 public:
  void Add() {
    const std::lock_guard lock(mutex_);
    ++count_;
    changed_.notify_all();
  }
  // False: everybody has ended before.
  bool Await(int64_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return count_ >= count || ended_; });
    return count_ >= count;
  }
  void End() {
    const std::lock_guard lock(mutex_);
    ended_ = true;
    changed_.notify_all();
  }
  int64_t count() {
    const std::lock_guard lock(mutex_);
    return count_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t count_ = 0;
  bool ended_ = false;
};

class DoingHost final : public ForwardingHost {
 public:
  DoingHost(std::unique_ptr<RankHost> inner, RankHost* host, Count* count)
      : ForwardingHost(inner == nullptr ? host : inner.get()),
        inner_(std::move(inner)),
        count_(count) {}
  void Doing(const Activity& activity) override {
    const bool known =
        activity.phase != Activity::Phase::kNone && activity.nanoseconds >= nanoseconds_;
    EXPECT_TRUE(known) << Describe(activity);
    EXPECT_GE(activity.step, step_);
    nanoseconds_ = activity.nanoseconds;
    step_ = activity.step;
    count_->Add();
  }

 private:
  std::unique_ptr<RankHost> inner_;
  Count* count_;
  int64_t step_ = 0, nanoseconds_ = 0;
};

// Runs the job, and stops all its ranks from another thread when they have done so many things.
TrainingResult StoppedAt(TrainingJob job, int64_t moment, uint64_t seed) {
  Count count;
  std::mutex mutex;
  std::map<int, Trainer*> trainers;
  job.made = [&](int rank, Trainer* trainer) {
    const std::lock_guard lock(mutex);
    if (trainer == nullptr)
      trainers.erase(rank);
    else
      trainers[rank] = trainer;
  };
  job.wrap_host = [&, wrap = job.wrap_host](int rank, RankHost* host) {
    return std::make_unique<DoingHost>(wrap ? wrap(rank, host) : nullptr, host, &count);
  };
  std::thread stopper([&] {
    if (!count.Await(moment)) return;
    Prng prng(seed);
    std::vector<int> order;
    for (int r = 0; r < static_cast<int>(job.config.layout.ranks()); ++r)
      order.insert(order.begin() + static_cast<int64_t>(prng.Below(order.size() + 1)), r);
    for (const int rank : order) {
      std::this_thread::sleep_for(std::chrono::microseconds(prng.Below(300)));
      const std::lock_guard lock(mutex);
      if (trainers.contains(rank)) trainers[rank]->Stop();
    }
  });
  TrainingResult result = RunJob(job);
  count.End();
  stopper.join();
  return result;
}

TEST_F(RecoveryTest, StoppedAtAnyMoment) {
  const RunConfig config = TinyConfig();
  const TrainingResult reference = Reference(config);
  const std::vector<Layout> layouts = {{1, 1, 2, 1}, {2, 2, 1, 0}, {1, 1, 3, 3},
                                       {1, 2, 2, 2}, {1, 1, 2, 0}, {2, 1, 2, 1}};
  int stops = 0;
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    Prng prng(seed);
    RecoveryWorld world(World(fmt::format("stop{}", seed)), config);
    std::vector<uint64_t> losses;
    TrainingJob before;
    int64_t step = -1;
    for (uint64_t generation = 1;; ++generation) {
      const Layout& layout = layouts[prng.Below(layouts.size())];
      TrainingJob job = step < 0 ? world.Job(generation, At(layout), 1)
                                 : world.Resume(generation, At(layout), 1, before, step);
      const int64_t begin = std::max<int64_t>(step, 0);
      const TrainingResult result = StoppedAt(job, 5 + static_cast<int64_t>(prng.Below(250)), seed);
      losses.resize(static_cast<size_t>(begin));
      losses.insert(losses.end(), result.loss_bits.begin(), result.loss_bits.end());
      if (result.complete) {
        // The stop may come behind the last step.
        EXPECT_TRUE(result.status.ok() || absl::IsCancelled(result.status)) << result.status;
        EXPECT_EQ(result.certificate.Hex(), reference.certificate.Hex());
        break;
      }
      ++stops;
      for (const absl::Status& status : result.statuses)
        EXPECT_TRUE(status.ok() || absl::IsCancelled(status) || absl::IsUnavailable(status))
            << status;
      EXPECT_TRUE(absl::IsCancelled(result.status) || absl::IsUnavailable(result.status));
      // One node is lost besides.
      const std::optional<int64_t> newest =
          world.NewestWhole(job, static_cast<int>(prng.Below(job.snapshot_peers.size())));
      if (!newest.has_value()) {
        // Before its first gather: what it started from is still there.
        EXPECT_LE(result.finished, begin);
        continue;
      }
      EXPECT_GE(*newest, result.finished - 1);
      before = job;
      step = *newest;
    }
    EXPECT_EQ(losses, reference.loss_bits);
  }
  EXPECT_GT(stops, 5);
}

// Waits for its lease, and so do the others for it.
class LeaseHost final : public ForwardingHost {
 public:
  LeaseHost(RankHost* host, int rank, Count* waits, Count* leases, std::atomic<int64_t>* progress,
            absl::Status verdict)
      : ForwardingHost(host),
        rank_(rank),
        waits_(waits),
        leases_(leases),
        progress_(progress),
        verdict_(std::move(verdict)) {}
  absl::Status AwaitLease(int64_t step) override {
    if (rank_ != 1 || step != 3) return absl::OkStatus();
    waits_->Add();
    leases_->Await(1);
    return verdict_;
  }
  void Progress(int64_t step, const WorkDone&) override {
    int64_t most = *progress_;
    while (most < step && !progress_->compare_exchange_weak(most, step)) {
    }
  }

 private:
  const int rank_;
  Count *waits_, *leases_;
  std::atomic<int64_t>* progress_;
  const absl::Status verdict_;
};

TEST_F(RecoveryTest, NobodyStepsWithoutALease) {
  const RunConfig config = TinyConfig();
  const TrainingResult reference = Reference(config);
  for (const bool granted : {true, false}) {
    RecoveryWorld world(World(granted ? "lease" : "no-lease"), config);
    Count waits, leases;
    std::atomic<int64_t> progress = 0;
    TrainingJob job = world.Job(1, At({2, 1, 2, 1}), 2);
    job.wrap_host = [&](int rank, RankHost* host) {
      return std::make_unique<LeaseHost>(
          host, rank, &waits, &leases, &progress,
          granted ? absl::OkStatus() : absl::CancelledError("the generation is over"));
    };
    TrainingResult result;
    std::thread run([&] { result = RunJob(job); });
    ASSERT_TRUE(waits.Await(1));
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    EXPECT_EQ(progress, 2);
    leases.Add();
    run.join();
    if (granted) {
      EXPECT_TRUE(result.status.ok()) << result.status;
      EXPECT_EQ(result.loss_bits, reference.loss_bits);
      EXPECT_EQ(result.certificate.Hex(), reference.certificate.Hex());
      EXPECT_GT(progress, 3);
    } else {
      EXPECT_EQ(Message(result.statuses[1]), "the generation is over");
      EXPECT_TRUE(absl::IsUnavailable(result.statuses[0])) << result.statuses[0];
      EXPECT_EQ(progress, 2);
    }
  }
}

}  // namespace
}  // namespace perdure
