// RunRankMain against an agent that keeps to the protocol, and against ones that do not: it must
// live from generation to generation, or end and tell why, and never hang.
#include "runtime/agent/rank_main.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <future>
#include <map>
#include <mutex>

#include "ckpt/packed_report.h"
#include "runtime/agent/rank_frames.h"
#include "runtime/agent/rank_page.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/train/writers.h"
#include "runtime/wire/event_loop.h"
#include "tests/ckpt/test_state.h"
#include "tests/train/faulty_ops.h"
#include "tests/train/trainer_harness.h"

namespace perdure {
namespace {

using ::testing::HasSubstr;

constexpr char kRunId[] = "0123456789abcdef0123456789abcdef";
constexpr char kConfigText[] = "the configuration";
constexpr absl::Duration kLong = absl::Hours(1);

absl::StatusOr<RunConfig> ParseTiny(const std::string& text) {
  if (text != kConfigText && text != "saves often")
    return InvalidArgument("run.toml: '{}' is no configuration", text);
  RunConfig config = TinyConfig();
  config.snapshot.peers = false;
  if (text != kConfigText) config.checkpoint.every_steps = 1;
  return config;
}

// Where the threads of a generation meet.
class Hubs {
 public:
  explicit Hubs(int size) : size_(size) {}
  std::shared_ptr<LocalHub> At(Generation generation) {
    const std::lock_guard lock(mutex_);
    std::shared_ptr<LocalHub>& hub = hubs_[generation];
    if (hub == nullptr) hub = NewLocalHub(size_);
    return hub;
  }

 private:
  const int size_;
  std::mutex mutex_;
  std::map<Generation, std::shared_ptr<LocalHub>> hubs_;
};

// A rank in a thread, and its agent's end of the line.
class Rank {
 public:
  Rank(Hubs* hubs, const RankDevices& devices) : page_(*RankPage::Make()) {
    int pair[2];
    PERDURE_CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    agent_.emplace(pair[0]);
    rank_ =
        std::async(std::launch::async, [fd = pair[1], page = ::dup(page_->fd()), hubs, devices] {
          return RunRankMain(FrameSocket(fd), page,
                             {.parse_config = ParseTiny,
                              .devices = devices,
                              .hub = [hubs](uint64_t generation) { return hubs->At(generation); }});
        });
  }
  ~Rank() {
    if (agent_.has_value()) ::shutdown(agent_->fd(), SHUT_RDWR);
    if (rank_.valid()) rank_.wait();
  }

  RankPage& page() { return *page_; }
  void Goes() { agent_.reset(); }
  void Send(const to_rank::Frame& frame) { SendJson(ToJson(frame)); }
  void SendJson(const Json& json) { ASSERT_OK(agent_->Send(json)); }
  absl::StatusOr<from_rank::Frame> Next(int milliseconds = 60000) {
    while (true) {
      ASSIGN_OR_RETURN(std::optional<Json> json, agent_->TryReceive());
      if (json.has_value()) return ParseFromRank(*json);
      pollfd wait{.fd = agent_->fd(), .events = POLLIN, .revents = 0};
      if (::poll(&wait, 1, milliseconds) <= 0) return DeadlineExceeded("no frame from the rank");
    }
  }
  // The next frame of that type; those that are told as steps go by are passed over.
  template <typename T>
  T Get() {
    for (;;) {
      const absl::StatusOr<from_rank::Frame> frame = Next();
      if (!frame.ok()) {
        ADD_FAILURE() << frame.status() << " instead of " << typeid(T).name();
        return {};
      }
      if (const T* found = std::get_if<T>(&*frame)) return *found;
      if (std::holds_alternative<from_rank::Step>(*frame) ||
          std::holds_alternative<from_rank::Progress>(*frame) ||
          std::holds_alternative<from_rank::Waiting>(*frame) ||
          std::holds_alternative<from_rank::Health>(*frame) ||
          std::holds_alternative<from_rank::Connected>(*frame) ||
          std::holds_alternative<from_rank::Certificate>(*frame) ||
          std::holds_alternative<from_rank::OlderMayGo>(*frame))
        continue;
      ADD_FAILURE() << ToJson(*frame).dump().substr(0, 500) << " instead of " << typeid(T).name();
      return {};
    }
  }
  bool Silent(int milliseconds) { return absl::IsDeadlineExceeded(Next(milliseconds).status()); }
  int ExitCode() {
    if (rank_.wait_for(std::chrono::seconds(60)) != std::future_status::ready) {
      ADD_FAILURE() << "the rank hangs";
      return -1;
    }
    return rank_.get();
  }

 private:
  const std::unique_ptr<RankPage> page_;
  std::optional<FrameSocket> agent_;
  std::future<int> rank_;
};

class RankMainTest : public testing::Test {
 protected:
  explicit RankMainTest(int ranks = 1, const RankDevices& devices = {}) : hubs_(ranks) {
    WriteTinyData(directory_.path());
    std::filesystem::create_directories(directory_.path() + "/run/ckpt");
    shelf_ = directory_.Make("shelf");
    for (int r = 0; r < ranks; ++r) ranks_.push_back(std::make_unique<Rank>(&hubs_, devices));
  }

  Rank& rank(int r = 0) { return *ranks_[static_cast<size_t>(r)]; }
  to_rank::Prepare Order(Generation generation, int r = 0) const {
    return {.generation = generation,
            .rank = r,
            .local_rank = r,
            .data = static_cast<int64_t>(ranks_.size()),
            .config = kConfigText,
            .data_directory = directory_.path(),
            .run_directory = directory_.path() + "/run",
            .run_id = kRunId,
            .snapshot_directory = shelf_,
            .snapshot_peers = {}};
  }
  // Until all have said loaded; rank 0's certificate.
  Digest Load(const std::function<void(to_rank::Prepare*)>& change = {},
              Generation generation = 1) {
    std::vector<std::string> addresses;
    for (int r = 0; r < static_cast<int>(ranks_.size()); ++r) {
      rank(r).page().Join(generation);
      to_rank::Prepare prepare = Order(generation, r);
      if (change) change(&prepare);
      rank(r).Send(prepare);
    }
    for (const auto& rank : ranks_) addresses.push_back(rank->Get<from_rank::Present>().address);
    for (const auto& rank : ranks_) {
      rank->Send(to_rank::Table{.generation = generation, .first = 0, .addresses = addresses});
      rank->Send(to_rank::Load{generation});
    }
    Digest certificate;
    for (int r = 0; r < static_cast<int>(ranks_.size()); ++r) {
      // Snapshots are where they were left.
      if (held_ > 0) {
        const auto need = rank(r).Get<from_rank::Need>();
        to_rank::Fetched fetched{.generation = generation, .paths = {}, .error = {}};
        for (const HeldNeed& n : need.needs) fetched.paths.push_back(PathOf(n.rank));
        rank(r).Send(fetched);
      }
      if (r == 0) certificate = rank(r).Get<from_rank::Certificate>().certificate;
      rank(r).Get<from_rank::Loaded>();
    }
    return certificate;
  }
  // The whole snapshot of a rank of the held generation at its step.
  std::string PathOf(int32_t rank) const {
    for (const int buffer : {0, 1}) {
      const std::string path = shelf_ + "/" + SnapshotFileName(held_, rank, buffer);
      const auto stamp = ReadSnapshotStamp(path);
      if (stamp.ok() && stamp->step == held_step_) return path;
    }
    ADD_FAILURE() << "no snapshot of step " << held_step_;
    return "";
  }
  void Go(Generation generation = 1, bool lease = true) {
    for (const auto& rank : ranks_) {
      rank->Send(to_rank::Go{generation});
      if (lease) rank->page().Renew(generation, MonotonicNow() + kLong);
    }
  }
  static to_rank::Write Write(int64_t step, int64_t attempt = 1, Generation generation = 1) {
    return {.generation = generation, .step = step, .attempt = attempt, .term = 3};
  }
  // Writes what it freezes until it is done; the last report.
  RunReport SaveUntilDone(Generation generation = 1) {
    from_rank::Written written;
    for (;;) {
      const absl::StatusOr<from_rank::Frame> frame = rank().Next();
      if (!frame.ok()) {
        ADD_FAILURE() << frame.status();
        return {};
      }
      if (const auto* frozen = std::get_if<from_rank::Frozen>(&*frame)) {
        rank().Send(Write(frozen->step, 1, generation));
      } else if (const auto* w = std::get_if<from_rank::Written>(&*frame)) {
        EXPECT_EQ(w->error, "");
        written = *w;
        rank().Send(to_rank::Settle{.generation = generation, .step = w->step, .committed = true});
      } else if (const auto* done = std::get_if<from_rank::Done>(&*frame)) {
        EXPECT_TRUE(done->complete);
        return *ParseRun(written.run.value_or("{}"));
      }
    }
  }
  void ExpectError(EvidenceKind kind, const std::string& message, int r = 0) {
    const auto error = rank(r).Get<from_rank::Error>();
    EXPECT_EQ(error.kind, kind) << error.message;
    EXPECT_THAT(error.message, HasSubstr(message));
    EXPECT_EQ(rank(r).ExitCode(), 1);
    EXPECT_TRUE(absl::IsUnavailable(rank(r).Next().status()));
  }

  const TestDirectory directory_;
  std::string shelf_;
  Hubs hubs_;
  std::vector<std::unique_ptr<Rank>> ranks_;
  Generation held_ = 0;
  int64_t held_step_ = 0;
};

TEST_F(RankMainTest, ARunFromItsBeginningToItsEnd) {
  Load();
  Go();
  EXPECT_EQ(rank().Get<from_rank::OlderMayGo>().generation, 1u);
  EXPECT_EQ(rank().Get<from_rank::Progress>().step, 1);
  EXPECT_EQ(rank().Get<from_rank::Step>().report.step, 1);
  const RunReport run = SaveUntilDone();
  EXPECT_EQ(run.file, "part-00000.h5");
  EXPECT_FALSE(run.atom_digests.empty());
  // What it did is in the page.
  EXPECT_THAT(rank().page().Activities(),
              ::testing::Contains(::testing::Field(&Activity::phase, Activity::Phase::kLeaving)));
  // Done, it still answers.
  rank().Send(to_rank::Stop{.generation = 1});
  rank().Get<from_rank::Stopped>();
  rank().Send(to_rank::Leave{});
  EXPECT_EQ(rank().ExitCode(), 0);
}

TEST_F(RankMainTest, WithoutALeaseThereIsNoStep) {
  Load();
  Go(1, /*lease=*/false);
  rank().page().Renew(2, MonotonicNow() + kLong);  // Another generation's is none.
  EXPECT_TRUE(rank().Silent(300));
  rank().page().Renew(1, MonotonicNow() - absl::Seconds(1));  // Nor is one that is over.
  EXPECT_TRUE(rank().Silent(300));
  EXPECT_EQ(rank().page().Activities().back().phase, Activity::Phase::kLease);
  rank().page().Renew(1, MonotonicNow() + kLong);
  EXPECT_EQ(rank().Get<from_rank::Progress>().step, 1);
}

// In one process: a generation that leaves at a boundary, and one that goes on from its snapshots
// to the very end that an undisturbed run has.
TEST_F(RankMainTest, TheNextGenerationGoesOnFromSnapshots) {
  Load();
  Go();
  EXPECT_EQ(rank().Get<from_rank::Step>().report.step, 1);
  rank().Send(to_rank::Stop{.generation = 1, .at_boundary = true});
  int64_t last = 0;
  for (;;) {
    const absl::StatusOr<from_rank::Frame> frame = rank().Next();
    ASSERT_OK(frame.status());
    if (const auto* progress = std::get_if<from_rank::Progress>(&*frame)) last = progress->step;
    EXPECT_FALSE(std::holds_alternative<from_rank::Frozen>(*frame)) << "a checkpoint";
    if (std::holds_alternative<from_rank::Stopped>(*frame)) break;
  }
  held_ = 1;
  held_step_ = last;
  const auto from_memory = [&](to_rank::Prepare* prepare) {
    prepare->held = to_rank::Prepare::Held{.generation = 1, .step = last};
  };
  Load(from_memory, 2);
  Go(2);
  EXPECT_EQ(rank().Get<from_rank::Progress>().step, last + 1);
  const RunReport run = SaveUntilDone(2);
  // Undisturbed, in the same process.
  held_ = 0;
  Load({}, 3);
  Go(3);
  EXPECT_EQ(SaveUntilDone(3).atom_digests, run.atom_digests);
}

TEST_F(RankMainTest, StopIsObeyedWhereverItIs) {
  Generation generation = 0;
  const auto stop = [&](bool at_boundary = false) {
    rank().Send(to_rank::Stop{.generation = generation, .at_boundary = at_boundary});
    EXPECT_EQ(rank().Get<from_rank::Stopped>().generation, generation);
  };
  rank().Send(Order(++generation));  // Waits for the table.
  rank().Get<from_rank::Present>();
  stop();
  stop();                  // Whoever does nothing has stopped.
  Load({}, ++generation);  // Waits for go.
  stop();
  Load({}, ++generation);  // Waits for its lease, at a boundary.
  Go(generation, /*lease=*/false);
  EXPECT_TRUE(rank().Silent(100));
  stop(/*at_boundary=*/true);
  Load({}, ++generation);  // Likewise.
  Go(generation, /*lease=*/false);
  stop();
  const auto often = [](to_rank::Prepare* prepare) { prepare->config = "saves often"; };
  for (const bool at_boundary : {true, false}) {
    Load(often, ++generation);  // Waits with the second state until the first is settled.
    Go(generation);
    for (bool frozen = false, waits = false; !frozen || !waits;) {
      const absl::StatusOr<from_rank::Frame> frame = rank().Next();
      ASSERT_OK(frame.status());
      frozen |= std::holds_alternative<from_rank::Frozen>(*frame);
      waits |= std::holds_alternative<from_rank::Waiting>(*frame);
    }
    stop(at_boundary);
  }
  Load({}, ++generation);  // Somewhere in a step.
  Go(generation);
  rank().Get<from_rank::Progress>();
  stop();
  rank().Send(to_rank::Leave{});
  EXPECT_EQ(rank().ExitCode(), 0);
}

TEST_F(RankMainTest, AStateIsFrozenOnceAndWrittenOnce) {
  Load();
  Go(1, /*lease=*/false);
  for (int i = 0; i < 3; ++i) rank().Send(to_rank::Freeze{.generation = 1, .after = -1});
  rank().page().Renew(1, MonotonicNow() + kLong);
  const auto frozen = rank().Get<from_rank::Frozen>();
  EXPECT_GT(frozen.step, 0);
  EXPECT_EQ(frozen.file, "part-00000.h5");
  rank().Send(to_rank::Freeze{.generation = 1, .after = -1});  // It is there.
  rank().Send(Write(frozen.step + 1));                         // Not what is frozen.
  for (int i = 0; i < 3; ++i) rank().Send(Write(frozen.step));
  const auto written = rank().Get<from_rank::Written>();
  EXPECT_EQ(written.error, "");
  EXPECT_EQ(written.attempt, 1);
  ASSERT_TRUE(written.sample_chain.has_value());
  const std::string path = fmt::format("{}/run/ckpt/{}/part-00000.h5", directory_.path(),
                                       CheckpointName(frozen.step, 1, AttemptNonce(3, 1)));
  const auto before = std::filesystem::last_write_time(path);
  rank().Send(Write(frozen.step));
  EXPECT_EQ(rank().Get<from_rank::Written>(), written);
  EXPECT_EQ(std::filesystem::last_write_time(path), before);
  // Read back, rightly and wrongly, and asked again.
  const RunReport run = *ParseRun(*written.run);
  PartReport part = *JoinRuns({&run, 1});
  to_rank::Verify verify{.generation = 1,
                         .step = frozen.step,
                         .attempt = 1,
                         .term = 3,
                         .file = 0,
                         .part = PackPart(part)};
  rank().Send(verify);
  const auto voted = rank().Get<from_rank::Voted>();
  EXPECT_EQ(voted.error, "");
  rank().Send(verify);
  EXPECT_EQ(rank().Get<from_rank::Voted>(), voted);
  part.blocks[0].bytes[0] ^= 1;
  verify.part = PackPart(part);
  verify.file = 1;
  rank().Send(verify);
  EXPECT_THAT(rank().Get<from_rank::Voted>().error, HasSubstr("block 0"));
  // Another attempt has another name.
  rank().Send(Write(frozen.step, 2));
  EXPECT_EQ(rank().Get<from_rank::Written>().attempt, 2);
  EXPECT_TRUE(std::filesystem::exists(fmt::format(
      "{}/run/ckpt/{}", directory_.path(), CheckpointName(frozen.step, 1, AttemptNonce(3, 2)))));
  rank().Send(to_rank::Settle{.generation = 1, .step = frozen.step, .committed = true});
  rank().Send(Write(frozen.step, 2));  // Nothing is to be said about it any more.
  SaveUntilDone();
}

TEST_F(RankMainTest, OneThatCannotWriteSaysSoAndTrainsOn) {
  std::filesystem::remove_all(directory_.path() + "/run/ckpt");
  std::ofstream(directory_.path() + "/run/ckpt") << "a file";
  Load();
  Go();
  const auto frozen = rank().Get<from_rank::Frozen>();
  rank().Send(Write(frozen.step));
  const auto written = rank().Get<from_rank::Written>();
  EXPECT_THAT(written.error, HasSubstr("ckpt"));
  EXPECT_FALSE(written.run.has_value());
  rank().Send(to_rank::Settle{.generation = 1, .step = frozen.step, .committed = false});
  EXPECT_TRUE(rank().Get<from_rank::Frozen>().step > frozen.step);
}

// ---- what goes wrong

TEST_F(RankMainTest, AConfigurationThatIsNone) {
  to_rank::Prepare prepare = Order(1);
  prepare.config = "[model";
  rank().Send(prepare);
  ExpectError(EvidenceKind::kTrainingFailed, "'[model' is no configuration");
}

TEST_F(RankMainTest, ARankBeyondTheLayout) {
  rank().Send(Order(1, 7));
  ExpectError(EvidenceKind::kTrainingFailed, "rank 7 of 1");
}

TEST_F(RankMainTest, DataThatIsNotThere) {
  std::filesystem::remove(directory_.path() + "/en.bin");
  Load();
  Go();
  ExpectError(EvidenceKind::kRankCrashed, "en.bin");
}

TEST_F(RankMainTest, ACheckpointThatIsNotThere) {
  to_rank::Prepare prepare = Order(1);
  prepare.checkpoint =
      to_rank::Prepare::Checkpoint{.path = directory_.path() + "/s9", .manifest = {}};
  rank().Send(prepare);
  const std::string address = rank().Get<from_rank::Present>().address;
  rank().Send(to_rank::Table{.generation = 1, .first = 0, .addresses = {address}});
  rank().Send(to_rank::Load{1});
  ExpectError(EvidenceKind::kBadCheckpoint, "/s9");
}

TEST_F(RankMainTest, SnapshotsThatNobodyHolds) {
  to_rank::Prepare prepare = Order(1);
  prepare.held = to_rank::Prepare::Held{.generation = 9, .step = 4};
  prepare.generation = 10;
  rank().Send(prepare);
  const std::string address = rank().Get<from_rank::Present>().address;
  rank().Send(to_rank::Table{.generation = 10, .first = 0, .addresses = {address}});
  rank().Send(to_rank::Load{10});
  const auto need = rank().Get<from_rank::Need>();
  ASSERT_EQ(need.needs.size(), 1u);
  EXPECT_EQ(need.needs[0].rank, 0);
  EXPECT_FALSE(need.needs[0].ranges.empty());
  rank().Send(to_rank::Fetched{.generation = 10, .paths = {}, .error = "node 3 is silent"});
  ExpectError(EvidenceKind::kBadSnapshot, "node 3 is silent");
}

TEST_F(RankMainTest, ATableWithAHole) {
  rank().Send(Order(1));
  rank().Get<from_rank::Present>();
  rank().Send(to_rank::Load{1});
  ExpectError(EvidenceKind::kRankCrashed, "without the address of rank 0");
}

TEST_F(RankMainTest, AnAgentThatGoes) {
  Load();
  rank().Goes();
  EXPECT_EQ(rank().ExitCode(), 1);
}

TEST_F(RankMainTest, AnAgentThatGoesWhileTraining) {
  Load();
  Go();
  rank().Get<from_rank::Progress>();
  rank().Goes();
  EXPECT_EQ(rank().ExitCode(), 1);
}

TEST_F(RankMainTest, AnAgentThatMakesNoSense) {
  rank().SendJson({{"type", "dance"}});
  ExpectError(EvidenceKind::kRankCrashed, "'dance'");
}

TEST_F(RankMainTest, AFieldThatIsMissing) {
  Json json = ToJson(to_rank::Frame(Order(1)));
  json.erase("run_id");
  rank().SendJson(json);
  ExpectError(EvidenceKind::kRankCrashed, "run_id");
}

TEST_F(RankMainTest, TwoGenerationsAtOnce) {
  rank().Send(Order(1));
  rank().Get<from_rank::Present>();
  rank().Send(Order(2));
  ExpectError(EvidenceKind::kRankCrashed, "prepares generation 2 while 1 runs");
}

TEST(RankMain, APageThatIsNone) {
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  FrameSocket agent(pair[0]);
  EXPECT_EQ(RunRankMain(FrameSocket(pair[1]), ::dup(pair[0]), {}), 1);
  const absl::StatusOr<Json> error = agent.Receive();
  ASSERT_OK(error.status());
  EXPECT_THAT(error->dump(), HasSubstr("no rank's page"));
}

// A device that does not compute what it should: the slot is lost, and nobody is met.
class RankMainBadDeviceTest : public RankMainTest {
 protected:
  RankMainBadDeviceTest()
      : RankMainTest(1, {.make = [](const RunConfig&, int) -> absl::StatusOr<RankDevice> {
                       return RankDevice{.ops = std::make_unique<FaultyOps>(Faults{.matmul = 1}),
                                         .name = "the faulty device"};
                     }}) {}
};

TEST_F(RankMainBadDeviceTest, LosesItsSlot) {
  rank().Send(Order(1));
  const auto health = rank().Get<from_rank::Health>();
  EXPECT_THAT(health.report["error"].get<std::string>(), HasSubstr("of a fp32 product"));
  const auto error = rank().Get<from_rank::Error>();
  EXPECT_EQ(error.kind, EvidenceKind::kHealthCheckFailed);
  EXPECT_TRUE(error.slot_lost);
  EXPECT_EQ(rank().ExitCode(), 1);
}

// The device is made and tried once, whatever it then serves.
class RankMainDevicesTest : public RankMainTest {
 protected:
  RankMainDevicesTest()
      : RankMainTest(1, {.make = [this](const RunConfig&, int) -> absl::StatusOr<RankDevice> {
                       ++made_;
                       return RankDevice{.ops = NewCpuOps(1), .name = "a device"};
                     }}) {}
  std::atomic<int> made_ = 0;
};

TEST_F(RankMainDevicesTest, AreMadeOnce) {
  for (Generation generation = 1; generation <= 3; ++generation) {
    Load({}, generation);
    Go(generation);
    rank().Get<from_rank::Progress>();
    rank().Send(to_rank::Stop{.generation = generation});
    rank().Get<from_rank::Stopped>();
  }
  EXPECT_EQ(made_, 1);
}

class RankMainPairTest : public RankMainTest {
 protected:
  RankMainPairTest() : RankMainTest(2) {}
};

TEST_F(RankMainPairTest, ALostPeerIsNoFaultOfOnesOwn) {
  Load();
  Go();
  rank(0).Get<from_rank::Progress>();
  rank(1).Goes();
  EXPECT_THAT(rank(0).Get<from_rank::BrokenOff>().reason, HasSubstr("1"));
  EXPECT_EQ(rank(1).ExitCode(), 1);
  rank(0).Send(to_rank::Stop{.generation = 1});
  rank(0).Get<from_rank::Stopped>();
  rank(0).Send(to_rank::Leave{});
  EXPECT_EQ(rank(0).ExitCode(), 0);
}

// Only rank 0 is told, all leave behind the same step; the other answers its stop when it comes.
TEST_F(RankMainPairTest, AllLeaveTogether) {
  Load();
  Go();
  rank(0).Get<from_rank::Progress>();
  rank(0).Send(to_rank::Stop{.generation = 1, .at_boundary = true});
  rank(0).Get<from_rank::Stopped>();
  while (!rank(1).Silent(500)) {
  }
  EXPECT_EQ(rank(1).page().Activities().back().phase, Activity::Phase::kLeaving);
  rank(1).Send(to_rank::Stop{.generation = 1, .at_boundary = true});
  rank(1).Get<from_rank::Stopped>();
  EXPECT_EQ(rank(0).page().Activities().back().step, rank(1).page().Activities().back().step);
}

}  // namespace
}  // namespace perdure
