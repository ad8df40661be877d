// A rank's saver against a host that is a script.
#include "runtime/train/checkpoint_saver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <deque>
#include <filesystem>
#include <future>

#include "kernels/word_sum.h"
#include "runtime/base/status.h"
#include "tests/ckpt/test_state.h"
#include "tests/kernels/device_ops.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using Kind = SaveOrder::Kind;

// Keeps what the saver says and gives the orders that the test puts into it.
class ScriptedHost final : public RankHost {
 public:
  absl::Status Loaded(std::span<const int64_t>, std::span<const Digest>) override {
    return absl::OkStatus();
  }
  Command StepFinished(const StepReport&) override { return Command::kNone; }

  void Waiting(int64_t step) override { waiting_ = step; }
  absl::Status Saved(const SavedRun& saved) override {
    const std::lock_guard lock(mutex_);
    saved_.push_back(saved);
    changed_.notify_all();
    return gone_ ? Unavailable("the host is gone") : absl::OkStatus();
  }
  absl::StatusOr<SaveOrder> NextOrder(int64_t step) override {
    std::unique_lock lock(mutex_);
    asked_.push_back(step);
    changed_.notify_all();
    changed_.wait(lock, [this] { return gone_ || !orders_.empty(); });
    if (gone_) return Unavailable("the host is gone");
    SaveOrder order = std::move(orders_.front());
    orders_.pop_front();
    return order;
  }
  absl::Status Verified(int64_t step, const std::string& file, const absl::Status& vote) override {
    const std::lock_guard lock(mutex_);
    votes_.push_back({step, file, vote});
    changed_.notify_all();
    return absl::OkStatus();
  }

  struct Vote {
    int64_t step = 0;
    std::string file;
    absl::Status status;
  };

  void Order(SaveOrder order) {
    const std::lock_guard lock(mutex_);
    orders_.push_back(std::move(order));
    changed_.notify_all();
  }
  void Settle() { Order({.kind = Kind::kSettled, .part = {}}); }
  void Go() {
    const std::lock_guard lock(mutex_);
    gone_ = true;
    changed_.notify_all();
  }
  // The n-th report, vote, question, from 0; waits for it.
  SavedRun AwaitSaved(size_t n) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return saved_.size() > n; });
    return saved_[n];
  }
  Vote AwaitVote(size_t n) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return votes_.size() > n; });
    return votes_[n];
  }
  void AwaitAsked(size_t n) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return asked_.size() > n; });
  }
  int64_t waiting() const { return waiting_; }
  size_t saved_count() {
    const std::lock_guard lock(mutex_);
    return saved_.size();
  }

 private:
  std::atomic<int64_t> waiting_ = -1;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<SaveOrder> orders_;
  std::vector<SavedRun> saved_;
  std::vector<Vote> votes_;
  std::vector<int64_t> asked_;
  bool gone_ = false;
};

class CheckpointSaverTest : public testing::Test {
 protected:
  CheckpointSaverTest() {
    // The rank under test writes the second run of a file; another one has written the first.
    PartPlan plan{.file = "part-00000.h5", .atoms = {}, .runs = {}};
    const auto atoms = static_cast<int64_t>(table_.atoms().size());
    for (int64_t atom = 0; atom < atoms; ++atom) plan.atoms.push_back(atom);
    plan.runs = {3, atoms - 3};
    writers_.files = {plan};
    writers_.ranks = {{0, 0}, {0, 1}, {-1, -1}};
  }

  std::vector<AtomState> Live(int rank) {
    const std::vector<AtomState>& all = live_.states();
    if (rank == 2) return {};
    return rank == 0 ? std::vector(all.begin(), all.begin() + 3)
                     : std::vector(all.begin() + 3, all.end());
  }
  std::unique_ptr<CheckpointSaver> Saver(int rank, RankHost* host, bool asynchronous = true) {
    CheckpointSaver::Options options;
    options.run_directory = directory_.path();
    options.stamp = {.step = 0, .generation = 2, .run_id = "run"};
    options.nonce = 7;
    options.write = {.threads = 1, .buffers = 8};
    options.asynchronous = asynchronous;
    options.sums = sums_;
    return std::make_unique<CheckpointSaver>(options, &table_, &writers_, rank, Live(rank),
                                             ops_.get(), host);
  }
  std::string PathOf(int64_t step, uint32_t nonce) const {
    return directory_.path() + "/ckpt/" + CheckpointName(step, 2, nonce);
  }
  std::vector<Digest> Digests(int rank) {
    std::vector<Digest> digests;
    for (const AtomState& state : Live(rank))
      digests.push_back(AtomDigest(state, table_.atoms()[static_cast<size_t>(state.atom)].count));
    return digests;
  }
  // As a step of training would.
  void ChangeLive() {
    for (const AtomState& state : live_.states())
      for (float* part : state.parts) part[0] += 1.5f;
  }
  // The other rank's share of an attempt.
  RunReport WriteFirstRun(int64_t step, uint32_t nonce) {
    const PartStamp stamp{.step = step, .generation = 2, .run_id = "run"};
    auto writer = RunWriter::Create(PathOf(step, nonce), table_, writers_.files[0], 0, stamp, {});
    EXPECT_OK(writer.status());
    for (const AtomState& state : Live(0)) EXPECT_OK((*writer)->Append(state));
    return *(*writer)->Finish();
  }

  const AtomTable table_{OddTensors(), 16};
  TestState live_{table_, 5};
  Writers writers_;
  const std::unique_ptr<Ops> ops_ = NewCpuOps(1);
  TestDirectory directory_;
  ScriptedHost host_;
  std::function<absl::StatusOr<std::vector<uint64_t>>()> sums_;  // None.
};

TEST_F(CheckpointSaverTest, WritesAndIsSettled) {
  const auto saver = Saver(1, &host_);
  const std::vector<Digest> frozen = Digests(1);
  ASSERT_OK(saver->Save(10));
  ChangeLive();
  const SavedRun saved = host_.AwaitSaved(0);
  ASSERT_OK(saved.status);
  EXPECT_EQ(saved.step, 10);
  EXPECT_EQ(saved.nonce, 7u);
  ASSERT_TRUE(saved.run.has_value());
  EXPECT_EQ(saved.run->run, 1);
  EXPECT_EQ(saved.run->atom_digests, frozen);
  EXPECT_TRUE(fs::exists(PathOf(10, 7) + "/part-00000.h5"));
  host_.Settle();
  EXPECT_OK(saver->Wait());
  EXPECT_EQ(host_.saved_count(), 1u);
}

// A checkpoint of memory that has lost a bit since the last update is none.
TEST_F(CheckpointSaverTest, ComparesWhatItWritesWithTheSumsOfTheUpdate) {
  sums_ = [sums = [this] {
    std::vector<uint64_t> sums;
    for (const AtomState& state : Live(1))
      for (const float* part : state.parts)
        sums.push_back(WordSum(
            part, sizeof(float) *
                      static_cast<size_t>(table_.atoms()[static_cast<size_t>(state.atom)].count)));
    return sums;
  }()] { return sums; };
  for (const bool asynchronous : {true, false}) {
    ScriptedHost host;
    const auto saver = Saver(1, &host, asynchronous);
    host.Settle();
    ASSERT_OK(saver->Save(10));
    EXPECT_OK(host.AwaitSaved(0).status);
    auto* const word = reinterpret_cast<uint32_t*>(Live(1).back().parts[2]);
    *word ^= 1;
    host.Settle();
    ASSERT_OK(saver->Save(11));
    const SavedRun saved = host.AwaitSaved(1);
    *word ^= 1;
    EXPECT_EQ(saved.status.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(Message(saved.status), HasSubstr("changed in memory before it was written"));
    EXPECT_FALSE(saved.run.has_value());
    EXPECT_OK(saver->Wait());
  }
}

TEST_F(CheckpointSaverTest, ReadsBackWhatItIsTold) {
  const auto saver = Saver(1, &host_);
  ASSERT_OK(saver->Save(10));
  const SavedRun saved = host_.AwaitSaved(0);
  const auto part = JoinRuns(std::vector<RunReport>{*saved.run, WriteFirstRun(10, 7)});
  ASSERT_OK(part.status());
  host_.Order({.kind = Kind::kVerify, .nonce = 7, .part = *part});
  const ScriptedHost::Vote good = host_.AwaitVote(0);
  EXPECT_OK(good.status);
  EXPECT_EQ(good.step, 10);
  EXPECT_EQ(good.file, "part-00000.h5");
  // As often as it is asked, and as things are by then.
  const std::string path = PathOf(10, 7) + "/part-00000.h5";
  std::string bytes = Slurp(path);
  bytes[part->offsets[1]] = static_cast<char>(bytes[part->offsets[1]] ^ 1);
  Spill(path, bytes);
  host_.Order({.kind = Kind::kVerify, .nonce = 7, .part = *part});
  EXPECT_EQ(host_.AwaitVote(1).status.code(), absl::StatusCode::kDataLoss);
  host_.Order({.kind = Kind::kVerify, .nonce = 8, .part = *part});
  EXPECT_EQ(host_.AwaitVote(2).status.code(), absl::StatusCode::kDataLoss);
  host_.Settle();
  EXPECT_OK(saver->Wait());
}

TEST_F(CheckpointSaverTest, RewritesTheFrozenStateThoughTheLiveOneHasChanged) {
  const auto saver = Saver(1, &host_);
  // Where the directory should be stands a file.
  fs::create_directory(directory_.path() + "/ckpt");
  Spill(PathOf(10, 7), "in the way");
  const std::vector<Digest> frozen = Digests(1);
  ASSERT_OK(saver->Save(10));
  ChangeLive();
  const SavedRun failed = host_.AwaitSaved(0);
  EXPECT_FALSE(failed.status.ok());
  EXPECT_THAT(Message(failed.status), HasSubstr(PathOf(10, 7)));
  EXPECT_FALSE(failed.run.has_value());
  for (const uint32_t nonce : {8u, 9u}) {
    host_.Order({.kind = Kind::kWrite, .nonce = nonce, .part = {}});
    ChangeLive();
    const SavedRun again = host_.AwaitSaved(nonce - 7);
    ASSERT_OK(again.status);
    EXPECT_EQ(again.nonce, nonce);
    ASSERT_TRUE(again.run.has_value());
    EXPECT_EQ(again.run->atom_digests, frozen);
    EXPECT_TRUE(fs::exists(PathOf(10, nonce) + "/part-00000.h5"));
  }
  host_.Settle();
  EXPECT_OK(saver->Wait());
  // A failed write is the host's business: the next save goes on from the live state.
  ASSERT_OK(saver->Save(20));
  const SavedRun next = host_.AwaitSaved(3);
  EXPECT_OK(next.status);
  EXPECT_EQ(next.nonce, 7u);
  EXPECT_EQ(next.run->atom_digests, Digests(1));
  host_.Settle();
  EXPECT_OK(saver->Wait());
}

TEST_F(CheckpointSaverTest, ASecondSaveWaitsUntilTheFirstIsSettled) {
  const auto saver = Saver(1, &host_);
  const std::vector<Digest> first = Digests(1);
  ASSERT_OK(saver->Save(10));
  host_.AwaitAsked(0);
  std::atomic<bool> frozen = false;
  std::future<absl::Status> second = std::async(std::launch::async, [&] {
    const absl::Status status = saver->Save(20);
    frozen = true;
    return status;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  EXPECT_FALSE(frozen);
  EXPECT_EQ(host_.waiting(), 20);
  // Still the first state, should it have to be written again.
  host_.Order({.kind = Kind::kWrite, .nonce = 8, .part = {}});
  EXPECT_EQ(host_.AwaitSaved(1).run->atom_digests, first);
  EXPECT_FALSE(frozen);
  host_.Settle();
  ASSERT_OK(second.get());
  EXPECT_EQ(host_.AwaitSaved(2).step, 20);
  EXPECT_GE(host_.AwaitSaved(2).wait_seconds, 0.02);
  EXPECT_GE(saver->stall_seconds(), 0.02);
  host_.Settle();
  EXPECT_OK(saver->Wait());
}

TEST_F(CheckpointSaverTest, SynchronousModeGivesTheSameBytes) {
  std::vector<std::string> bytes;
  for (const bool asynchronous : {true, false}) {
    ScriptedHost host;
    const auto saver = Saver(1, &host, asynchronous);
    host.Settle();
    const int64_t step = 10;
    ASSERT_OK(saver->Save(step));
    if (!asynchronous) {
      EXPECT_EQ(host.saved_count(), 1u);  // Done when Save returns.
      EXPECT_GT(saver->stall_seconds(), 0);
    }
    ASSERT_OK(saver->Wait());
    bytes.push_back(Slurp(PathOf(step, 7) + "/part-00000.h5"));
    fs::remove_all(PathOf(step, 7));
  }
  EXPECT_TRUE(bytes[0] == bytes[1]);
}

// Of device memory there is a frozen copy in both modes, and it is of the moment of Save.
TEST_F(CheckpointSaverTest, FreezesWhatStandsOnADevice) {
  for (const bool asynchronous : {true, false}) {
    DeviceOps ops;
    ScriptedHost host;
    std::vector<AtomState> device = Live(1);
    for (AtomState& state : device)
      for (float*& part : state.parts) {
        const auto count =
            static_cast<size_t>(table_.atoms()[static_cast<size_t>(state.atom)].count);
        auto* memory = static_cast<float*>(ops.Allocate(count * sizeof(float)));
        ops.Upload(part, count * sizeof(float), memory);
        part = memory;
      }
    CheckpointSaver saver({.run_directory = directory_.path(),
                           .stamp = {.step = 0, .generation = 2, .run_id = "run"},
                           .nonce = asynchronous ? 1U : 2U,
                           .write = {.threads = 1, .buffers = 8},
                           .asynchronous = asynchronous},
                          &table_, &writers_, 1, device, &ops, &host);
    host.Settle();
    ASSERT_OK(saver.Save(10));
    ops.AwaitDownloads();
    for (const AtomState& state : device)
      for (float* part : state.parts) ops.Zero(Matrix(part, DType::kF32, 1, 1));
    ASSERT_OK(ops.Sync());
    EXPECT_OK(saver.Wait());
    EXPECT_EQ(host.AwaitSaved(0).run->atom_digests, Digests(1));
  }
}

TEST_F(CheckpointSaverTest, ARankWithoutAtomsTakesPart) {
  const auto saver = Saver(2, &host_);
  ASSERT_OK(saver->Save(10));
  const SavedRun saved = host_.AwaitSaved(0);
  EXPECT_OK(saved.status);
  EXPECT_FALSE(saved.run.has_value());
  host_.Settle();
  EXPECT_OK(saver->Wait());
  EXPECT_FALSE(fs::exists(PathOf(10, 7)));
}

TEST_F(CheckpointSaverTest, AHostThatIsGoneIsAnErrorOfWhatFollows) {
  const auto saver = Saver(1, &host_);
  ASSERT_OK(saver->Save(10));
  host_.AwaitAsked(0);
  host_.Go();
  EXPECT_EQ(saver->Wait().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(saver->Save(20).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(host_.saved_count(), 1u);
}

TEST_F(CheckpointSaverTest, MayBeDroppedAtAnyMoment) {
  Saver(1, &host_).reset();  // While memory is being taken.
  auto saver = Saver(1, &host_);
  ASSERT_OK(saver->Wait());
  saver.reset();
  // While it waits for an order: it goes when the host answers, or goes.
  for (const bool gone : {false, true}) {
    ScriptedHost host;
    saver = Saver(1, &host);
    ASSERT_OK(saver->Save(gone ? 20 : 10));
    host.AwaitAsked(0);
    std::future<void> dropped = std::async(std::launch::async, [&] { saver.reset(); });
    EXPECT_EQ(dropped.wait_for(std::chrono::milliseconds(20)), std::future_status::timeout);
    gone ? host.Go() : host.Settle();
    dropped.get();
  }
  // With a save that its thread has not begun.
  ScriptedHost host;
  host.Go();
  saver = Saver(1, &host);
  ASSERT_OK(saver->Save(30));
  saver.reset();
}

}  // namespace
}  // namespace perdure
