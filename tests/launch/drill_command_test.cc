// perdure drill as users meet it: what is refused, with nobody hurt; what is certified, of jobs
// that really recover and of journals that say otherwise.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "launch/drill_flip.h"
#include "launch/node_book.h"
#include "runtime/agent/process.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "tests/chaos/chaos_job.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using testing::HasSubstr;

// A process that does nothing, for somebody to hit.
class Bystander {
 public:
  explicit Bystander(uid_t user = 0) : pid_(::fork()) {
    if (pid_ != 0) return;
    if (user != 0 && ::setuid(user) != 0) ::_exit(1);
    for (;;) ::pause();
  }
  ~Bystander() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  Bystander(const Bystander&) = delete;
  Bystander& operator=(const Bystander&) = delete;

  pid_t pid() const { return pid_; }
  uint64_t start() const { return ProcessStart(pid_); }
  bool Lives() const { return ProcessLives(pid_, 0); }
  // Whether it does nothing by its own will, and was not stopped: who goes on needs a moment.
  bool Waits() const {
    for (int i = 0; i < 6000 && ProcessState(pid_) != 'S'; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    return ProcessState(pid_) == 'S';
  }

 private:
  const pid_t pid_;
};

// What a running job leaves for others to read: its launcher is this test, its agents and ranks are
// whatever a test says.
class FakeJob : public testing::Test {
 protected:
  FakeJob() : folder_(FreshFolder("drill")), run_(folder_ + "/run") {
    fs::create_directories(run_ + "/jobs/7");
    fs::create_directories(run_ + "/metrics");
    State("running");
  }
  ~FakeJob() override { fs::remove_all(folder_); }

  void State(const std::string& state, const Json& nodes = {0}, uint64_t launcher_start = 0) {
    Write("status.json",
          {{"state", state},
           {"name", "fake"},
           {"job", 7},
           {"coordinator", 0},
           {"nodes", nodes},
           {"launcher_pid", ::getpid()},
           {"launcher_start", launcher_start != 0 ? launcher_start : ProcessStart(::getpid())}});
  }
  // A node with one rank, of the same number.
  void Node(int node, const Bystander& agent, const Bystander& rank, uint64_t rank_start = 0) {
    Write(fmt::format("jobs/7/node-{:05}.json", node),
          {{"node", node},
           {"agent_pid", agent.pid()},
           {"agent_start", agent.start()},
           {"ranks",
            {{{"rank", node},
              {"local_rank", 0},
              {"pid", rank.pid()},
              {"start", rank_start != 0 ? rank_start : rank.start()}}}}});
  }
  void Write(const std::string& name, const Json& content) {
    ASSERT_TRUE(ReplaceFileFast(run_ + "/" + name, content.dump()).ok());
  }
  void Say(const std::string& event, Json fields, double clock = 0) {
    fields["time"] = "2026-11-21T10:00:00.000Z";
    fields["event"] = event;
    fields["coordinator"] = 0;
    fields["clock"] = clock;
    std::ofstream(run_ + "/journal.jsonl", std::ios::app) << fields.dump() << "\n";
  }
  CommandResult Drill(std::vector<std::string> more) {
    std::vector<std::string> words = {"drill", run_, "--seed", "1", "--wait", "0.3"};
    words.insert(words.end(), more.begin(), more.end());
    return Perdure(words);
  }
  // Calls `then` when a drill has struck.
  std::thread WhenStruck(const std::function<void()>& then) {
    return std::thread([this, then, before = JournalEvents(run_, "drill").size()] {
      for (int i = 0; i < 2000 && JournalEvents(run_, "drill").size() == before; ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      then();
    });
  }
  // Starts a drill of a rank, and calls `then` when it has struck.
  Json DrillAndThen(const std::string& kind, const std::function<void()>& then, int* exit_code) {
    std::thread story = WhenStruck(then);
    const CommandResult drilled =
        Perdure({"drill", run_, "--kind", kind, "--seed", "1", "--wait", "20", "--json"});
    story.join();
    *exit_code = drilled.exit_code;
    return Json::parse(drilled.output, nullptr, false)["injuries"][0];
  }
  void Recover(const std::string& loss_bits) {
    Say("failure_detected", {{"generation", 1}, {"node", 0}, {"kind", "rank-killed"}}, 1);
    Say("generation_starting", {{"generation", 2}, {"from", "memory"}, {"step", 4}}, 2);
    Say("ranks_connected", {{"generation", 2}}, 3);
    Say("state_restored", {{"generation", 2}}, 4);
    Say("step", {{"generation", 2}, {"step", 5}, {"loss_bits", loss_bits}});
    Say("first_step", {{"generation", 2}, {"step", 5}}, 5);
  }

  const std::string folder_, run_;
};

TEST_F(FakeJob, WrongUsageIsRefused) {
  EXPECT_EQ(Perdure({"drill"}).exit_code, 2);
  const CommandResult kind = Drill({"--kind", "corrupting"});
  EXPECT_EQ(kind.exit_code, 2);
  EXPECT_THAT(kind.errors, HasSubstr("coordinator"));
  EXPECT_EQ(Drill({"--wait", "0"}).exit_code, 2);
  EXPECT_EQ(Drill({"--count", "-1"}).exit_code, 2);
  const CommandResult nothing = Drill({"--count", "0"});
  EXPECT_EQ(nothing.exit_code, 2);
  EXPECT_THAT(nothing.errors, HasSubstr("--against"));
}

TEST_F(FakeJob, WhatDoesNotRunHereIsRefused) {
  const CommandResult absent = Perdure({"drill", folder_ + "/absent"});
  EXPECT_EQ(absent.exit_code, 2);
  EXPECT_THAT(absent.errors, HasSubstr("no run directory"));
  State("complete");
  const CommandResult complete = Drill({});
  EXPECT_EQ(complete.exit_code, 2);
  EXPECT_THAT(complete.errors, HasSubstr("state complete"));
  State("running", {0}, ProcessStart(::getpid()) + 1);
  const CommandResult lost = Drill({});
  EXPECT_EQ(lost.exit_code, 2);
  EXPECT_THAT(lost.errors, HasSubstr("not on this machine"));
  State("stopping");
  EXPECT_THAT(Drill({}).errors, HasSubstr("nothing left to drill"));
  State("recovering");
  const CommandResult recovering = Drill({});
  EXPECT_EQ(recovering.exit_code, 2);
  EXPECT_THAT(recovering.errors, HasSubstr("has made no step in 300ms"));
  ASSERT_TRUE(ReplaceFileFast(run_ + "/status.json", "{").ok());
  EXPECT_EQ(Drill({}).exit_code, 2);
  EXPECT_TRUE(JournalEvents(run_, "drill").empty());
}

// In the middle of another recovery it would not be known what recovered.
TEST_F(FakeJob, AGenerationThatHasNotSteppedIsWaitedFor) {
  const Bystander agent, rank;
  Node(0, agent, rank);
  Say("generation_starting", {{"generation", 3}, {"from", "memory"}, {"step", 4}});
  EXPECT_THAT(Drill({}).errors, HasSubstr("has made no step"));
  EXPECT_TRUE(rank.Lives());
}

TEST_F(FakeJob, ANumberThatIsSomebodyElsesIsNotHit) {
  const Bystander agent, rank;
  Node(0, agent, rank, rank.start() + 1);
  const CommandResult other = Drill({});
  EXPECT_EQ(other.exit_code, 2);
  EXPECT_THAT(other.errors, HasSubstr("is another one than the job's by now"));
  EXPECT_TRUE(rank.Lives());
  int status = 0;
  const pid_t gone = ::fork();
  if (gone == 0) ::_exit(0);
  ASSERT_EQ(::waitpid(gone, &status, 0), gone);
  Write("jobs/7/node-00000.json",
        {{"node", 0},
         {"agent_pid", agent.pid()},
         {"agent_start", agent.start()},
         {"ranks", {{{"rank", 0}, {"local_rank", 0}, {"pid", gone}, {"start", 1}}}}});
  EXPECT_THAT(Drill({}).errors, HasSubstr("is not there any more"));
  EXPECT_TRUE(JournalEvents(run_, "drill").empty());
}

TEST_F(FakeJob, AStatusThatNamesNoProcessIsRefused) {
  const Bystander agent;
  EXPECT_THAT(Drill({}).errors, HasSubstr("no node of the job runs ranks"));
  for (const Json& pid : {Json(0), Json(1), Json(-1), Json("7"), Json(), Json(1ULL << 40)}) {
    Write("jobs/7/node-00000.json",
          {{"node", 0},
           {"agent_pid", agent.pid()},
           {"agent_start", agent.start()},
           {"ranks", {{{"rank", 0}, {"local_rank", 0}, {"pid", pid}, {"start", 1}}}}});
    const CommandResult result = Drill({});
    EXPECT_EQ(result.exit_code, 2) << pid;
    EXPECT_THAT(result.errors, HasSubstr("another version's")) << pid;
  }
  // As before there were starts.
  Write(
      "jobs/7/node-00000.json",
      {{"node", 0}, {"agent_pid", agent.pid()}, {"ranks", {{{"rank", 0}, {"pid", agent.pid()}}}}});
  EXPECT_THAT(Drill({}).errors, HasSubstr("another version's"));
  EXPECT_TRUE(agent.Lives());
}

TEST_F(FakeJob, AnotherUsersProcessIsNotHit) {
  if (::geteuid() != 0) GTEST_SKIP() << "another user's process needs root";
  const Bystander agent, rank(65534);
  for (int i = 0; i < 1000 && fs::status(fmt::format("/proc/{}", rank.pid())).permissions() ==
                                  fs::perms::unknown;
       ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  Node(0, agent, rank);
  const CommandResult result = Drill({});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.errors, HasSubstr("is user 65534's"));
  EXPECT_TRUE(rank.Lives());
}

TEST_F(FakeJob, ANodeIsNotTakenFromAJobOfOne) {
  const Bystander agent, rank;
  Node(0, agent, rank);
  for (const char* kind : {"node", "agent", "coordinator"}) {
    const CommandResult result = Drill({"--kind", kind});
    EXPECT_EQ(result.exit_code, 2) << kind;
    EXPECT_THAT(result.errors, HasSubstr("jobs of 2 nodes or more, this one runs on 1")) << kind;
  }
  EXPECT_TRUE(agent.Lives() && rank.Lives());
}

TEST_F(FakeJob, WhatDoesNotRecoverIsNotCertified) {
  const Bystander agent, rank;
  Node(0, agent, rank);
  const CommandResult result = Drill({"--kind", "rank"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.output, HasSubstr("NOT RECOVERED: no recovery in 300ms"));
  EXPECT_FALSE(rank.Lives());
  EXPECT_TRUE(agent.Lives());
  const auto drills = JournalEvents(run_, "drill");
  ASSERT_EQ(drills.size(), 1U);
  EXPECT_EQ(drills[0]["process"], rank.pid());
  ASSERT_EQ(JournalEvents(run_, "drill_over").size(), 1U);
  EXPECT_EQ(JournalEvents(run_, "drill_over")[0]["recovered"], false);
}

// The next jobs of a chain do not do without a node for it, unless they are to.
TEST_F(FakeJob, TheBookOfNodesSaysThatItWasOnPurpose) {
  const Bystander agent, rank;
  Node(0, agent, rank);
  const auto write = [&](const std::string& name, const Json& more) {
    Json content = Json::parse(ReadFile(run_ + "/" + name).value_or(""));
    content.update(more);
    Write(name, content);
  };
  write("status.json", {{"slurm_job", 12}, {"generation", 3}});
  write("jobs/7/node-00000.json", {{"name", "n042"}});
  const auto known = [&] {
    const absl::StatusOr<NodeBook::Contents> contents = NodeBook(run_).Read({});
    EXPECT_TRUE(contents.ok()) << contents.status();
    return contents->book.Entries();
  };
  EXPECT_EQ(Drill({"--kind", "hang", "--hold-against"}).exit_code, 1);
  EXPECT_TRUE(known().empty());
  EXPECT_EQ(Drill({"--kind", "rank"}).exit_code, 1);
  ASSERT_EQ(known().size(), 1U);
  EXPECT_EQ(known()[0].node, "n042");
  EXPECT_EQ(known()[0].kind, EvidenceKind::kDrilled);
  EXPECT_EQ(known()[0].generation, 3U);
  EXPECT_EQ(known()[0].job, "12");
}

// What was asked for and not done is not certified; what the job is too small for is not asked for.
TEST_F(FakeJob, OfAllWhatTheJobIsLargeEnoughFor) {
  const Bystander agent, rank;
  Node(0, agent, rank);
  const CommandResult all = Drill({"--kind", "all"});
  EXPECT_EQ(all.exit_code, 1);
  EXPECT_THAT(all.errors, HasSubstr("node is left out: kind node is for jobs of 2 nodes"));
  EXPECT_THAT(all.errors, HasSubstr("hang is left out: rank 0, process"));
  EXPECT_EQ(JournalEvents(run_, "drill").size(), 1U);
  EXPECT_TRUE(agent.Lives());
}

// Whoever was stopped goes on: a drill leaves nothing behind.
TEST_F(FakeJob, WhoIsNotReplacedGoesOn) {
  const Bystander agent, rank;
  Node(0, agent, rank);
  const CommandResult hang = Drill({"--kind", "hang"});
  EXPECT_EQ(hang.exit_code, 1) << hang.output;
  EXPECT_TRUE(rank.Waits());
  int exit_code = -1;
  const Json injury = DrillAndThen(
      "hang", [this] { Recover("4015a228d66b3d53"); }, &exit_code);
  EXPECT_EQ(exit_code, 1);
  EXPECT_THAT(injury["words"].get<std::string>(), HasSubstr("was not replaced"));
  EXPECT_TRUE(rank.Waits());
}

TEST_F(FakeJob, ARecoveryIsCertifiedByTheJournal) {
  const Bystander agent, rank;
  Node(0, agent, rank);
  Say("step", {{"generation", 1}, {"step", 4}, {"loss_bits", "4015a228d66b3d52"}});
  Say("step", {{"generation", 1}, {"step", 5}, {"loss_bits", "4015a228d66b3d53"}});
  int exit_code = -1;
  const Json injury = DrillAndThen(
      "rank", [this] { Recover("4015a228d66b3d53"); }, &exit_code);
  EXPECT_EQ(exit_code, 0) << injury;
  EXPECT_EQ(injury["recovered"], true);
  EXPECT_EQ(injury["redone"], 1);
  EXPECT_EQ(injury["told_twice"], 1);
  EXPECT_EQ(injury["re_form"], 2);
  EXPECT_EQ(injury["restore"], 1);
  EXPECT_EQ(injury["first_step"], 1);
}

// A job that is hurt again before it gets on ends itself, as it should.
TEST_F(FakeJob, TheNextInjuryComesAFewStepsLater) {
  const Bystander agent, rank;
  Node(0, agent, rank);
  Say("step", {{"generation", 1}, {"step", 5}, {"loss_bits", "4015a228d66b3d53"}});
  std::thread story = WhenStruck([this] { Recover("4015a228d66b3d53"); });
  const CommandResult twice =
      Perdure({"drill", run_, "--kind", "rank", "--count", "2", "--seed", "1", "--wait", "1"});
  story.join();
  EXPECT_EQ(twice.exit_code, 1);
  EXPECT_THAT(twice.errors, HasSubstr("has made no 3 steps since the last injury in 1s"));
  EXPECT_EQ(JournalEvents(run_, "drill").size(), 1U);
}

// That the job went on is not enough: whose memory it was must be known.
TEST_F(FakeJob, AFlippedBitIsCertifiedWithItsRankAlone) {
  fs::create_directories(run_ + "/control");
  const auto recover = [&](const Json& failure) {
    // Each time another agent: one that knows no drills dies of the signal.
    const Bystander agent, rank;
    Node(0, agent, rank);
    State("running");
    int exit_code = -1;
    const Json injury = DrillAndThen(
        "corrupt",
        [&] {
          Say("failure_detected", failure, 1);
          Recover("4015a228d66b3d53");
        },
        &exit_code);
    EXPECT_EQ(injury["recovered"], exit_code == 0);
    EXPECT_TRUE(rank.Lives());
    EXPECT_TRUE(FlipPlaceOf(injury["flip"]["place"].get<std::string>()).has_value()) << injury;
    return injury;
  };
  const Json named = {{"generation", 1}, {"node", 0}, {"rank", 0}, {"kind", "silent-corruption"}};
  const Json found = recover(named);
  EXPECT_EQ(found["recovered"], true) << found;
  // What the agent is asked for.
  const absl::StatusOr<DrillFlip> asked = TakeDrillFlip(run_, 0);
  ASSERT_TRUE(asked.ok()) << asked.status();
  EXPECT_EQ(asked->local_rank, 0);
  EXPECT_EQ(NameOf(asked->flip.place), found["flip"]["place"].get<std::string>());
  EXPECT_TRUE(absl::IsNotFound(TakeDrillFlip(run_, 0).status()));
}

TEST_F(FakeJob, AFlippedBitThatNobodyFoundIsNotCertified) {
  fs::create_directories(run_ + "/control");
  const Bystander agent, rank;
  Node(0, agent, rank);
  int exit_code = -1;
  const Json injury = DrillAndThen(
      "corrupt", [this] { Recover("4015a228d66b3d53"); }, &exit_code);
  EXPECT_EQ(exit_code, 1);
  EXPECT_THAT(injury["words"].get<std::string>(), HasSubstr("was not found out"));
  std::ofstream(run_ + "/control/flip-00000.json") << R"({"local_rank": 0, "place": "nowhere"})";
  EXPECT_TRUE(absl::IsDataLoss(TakeDrillFlip(run_, 0).status()));
}

// A slow rank that nobody names is not certified, whatever else goes well; it goes on as it was.
TEST_F(FakeJob, ASlowRankMustBeNamed) {
  const Bystander agent, rank, other_agent, other;
  State("running", {0, 1});
  Node(0, agent, rank);
  Node(1, other_agent, other);
  const CommandResult unnamed = Drill({"--kind", "slow"});
  EXPECT_EQ(unnamed.exit_code, 1) << unnamed.output;
  EXPECT_THAT(unnamed.output, HasSubstr("NOT RECOVERED: it was a third as fast for 300ms"));
  int exit_code = -1;
  const auto story = [this] {
    const Json hit = JournalEvents(run_, "drill").back()["node"];
    Say("evidence", {{"node", 7}, {"kind", "slow"}, {"number", 900}, {"generation", 1}}, 1);
    Say("evidence", {{"node", hit}, {"kind", "hung"}, {"number", 0}, {"generation", 1}}, 1);
    Say("evidence",
        {{"node", hit}, {"rank", hit}, {"kind", "slow"}, {"number", 296}, {"generation", 1}}, 1);
    Say("failure_detected", {{"generation", 1}, {"node", hit}, {"kind", "slow"}}, 1);
    Say("generation_starting", {{"generation", 2}, {"from", "memory"}, {"step", 4}}, 2);
    Say("ranks_connected", {{"generation", 2}}, 3);
    Say("state_restored", {{"generation", 2}}, 4);
    Say("step", {{"generation", 2}, {"step", 5}, {"loss_bits", "4015a228d66b3d53"}});
    Say("first_step", {{"generation", 2}, {"step", 5}}, 5);
  };
  const Json injury = DrillAndThen("slow", story, &exit_code);
  EXPECT_EQ(exit_code, 0) << injury;
  EXPECT_EQ(injury["percent"], 296);
  EXPECT_EQ(injury["failure"], "slow");
  EXPECT_EQ(injury["redone"], 0);
  EXPECT_THAT(injury["words"].get<std::string>(), HasSubstr("slow (2.96 times the others' work)"));
  EXPECT_TRUE(injury["steps_per_second"].contains("before"));
  EXPECT_TRUE(rank.Waits());
  EXPECT_TRUE(other.Waits());
}

// The coordinator has seen the step before its line comes; what it says counts.
TEST_F(FakeJob, AStepThatIsToldBehindItsRecoveryIsCompared) {
  const Bystander agent, rank;
  Node(0, agent, rank);
  Say("step", {{"generation", 1}, {"step", 5}, {"loss_bits", "4015a228d66b3d53"}});
  int exit_code = -1;
  const Json injury = DrillAndThen(
      "rank",
      [this] {
        Say("failure_detected", {{"generation", 1}, {"node", 0}, {"kind", "rank-killed"}}, 1);
        Say("generation_starting", {{"generation", 2}, {"from", "memory"}, {"step", 4}}, 2);
        Say("first_step", {{"generation", 2}, {"step", 5}}, 5);
        std::this_thread::sleep_for(std::chrono::milliseconds(300));
        Say("step", {{"generation", 2}, {"step", 5}, {"loss_bits", "4015a228d66b3d54"}});
      },
      &exit_code);
  EXPECT_EQ(exit_code, 1) << injury;
  EXPECT_EQ(injury["disagreements"].size(), 1U);
}

// The layout was about to change: what died would have been stopped.
TEST_F(FakeJob, AChangeThatWasToComeAnywayIsSaid) {
  const Bystander agent, rank;
  Node(0, agent, rank);
  Say("generation_starting", {{"generation", 1}, {"from", "beginning"}, {"step", 0}});
  Say("first_step", {{"generation", 1}, {"step", 1}});
  int exit_code = -1;
  const Json injury = DrillAndThen(
      "rank",
      [this] {
        Say("generation_stopping", {{"generation", 1}, {"failure", nullptr}});
        Say("generation_starting", {{"generation", 2}, {"from", "memory"}, {"step", 4}});
        std::this_thread::sleep_for(std::chrono::milliseconds(300));
        Say("first_step", {{"generation", 2}, {"step", 5}});
      },
      &exit_code);
  EXPECT_EQ(exit_code, 0) << injury;
  EXPECT_EQ(injury["tolerated"], true);
  EXPECT_EQ(injury["words"], "generation 2 was to come anyway");
}

TEST_F(FakeJob, AnotherLossIsNoRecovery) {
  const Bystander agent, rank;
  Node(0, agent, rank);
  Say("step", {{"generation", 1}, {"step", 5}, {"loss_bits", "4015a228d66b3d53"}});
  int exit_code = -1;
  const Json injury = DrillAndThen(
      "rank", [this] { Recover("4015a228d66b3d54"); }, &exit_code);
  EXPECT_EQ(exit_code, 1);
  EXPECT_EQ(injury["recovered"], false);
  EXPECT_EQ(injury["disagreements"].size(), 1U);
  EXPECT_THAT(injury["words"].get<std::string>(),
              HasSubstr("step 5 gave loss 4015a228d66b3d53 in generation 1"));
}

TEST_F(FakeJob, AnEndIsNoRecovery) {
  const Bystander agent, rank;
  Node(0, agent, rank);
  int exit_code = -1;
  const Json injury = DrillAndThen(
      "rank", [this] { State("failed"); }, &exit_code);
  EXPECT_EQ(exit_code, 1);
  EXPECT_EQ(injury["words"], "the job is failed");
}

// A generation that runs on under another coordinator has nothing to recover from.
TEST_F(FakeJob, ATakenOverGenerationNeedsAStep) {
  const Bystander agent, rank, other_agent, other_rank;
  Node(0, agent, rank);
  Node(1, other_agent, other_rank);
  State("running", {0, 1});
  Say("step", {{"generation", 1}, {"step", 5}, {"loss_bits", "4015a228d66b3d53"}});
  int exit_code = -1;
  const Json injury = DrillAndThen(
      "coordinator",
      [this] {
        Say("generation_taken_over", {{"generation", 1}, {"step", 5}});
        Say("step", {{"generation", 1}, {"step", 6}, {"loss_bits", "4015a228d66b3d53"}});
        std::this_thread::sleep_for(std::chrono::milliseconds(300));
        Say("step", {{"generation", 1}, {"step", 7}, {"loss_bits", "4015a228d66b3d53"}});
      },
      &exit_code);
  EXPECT_EQ(exit_code, 0) << injury;
  EXPECT_EQ(injury["tolerated"], true);
  EXPECT_FALSE(agent.Lives());
  EXPECT_TRUE(other_agent.Lives());
}

TEST_F(FakeJob, RunsWithNothingInCommonAreNotCompared) {
  const CommandResult result = Drill({"--count", "0", "--against", folder_ + "/absent"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.errors, HasSubstr("loss.csv"));
}

// ---- jobs that are what they say

class DrilledJob : public testing::Test {
 protected:
  DrilledJob() : folder_(FreshFolder("drilled")) { WriteNanoData(folder_); }
  ~DrilledJob() override { fs::remove_all(folder_); }

  Json Drill(const ChaosJob& job, const std::vector<std::string>& more) {
    std::vector<std::string> words = {"drill", job.run(), "--seed", "5", "--json"};
    words.insert(words.end(), more.begin(), more.end());
    const CommandResult result = Perdure(words);
    EXPECT_EQ(result.exit_code, 0) << result.output << result.errors << job.Errors();
    return Json::parse(result.output, nullptr, false);
  }
  void ExpectTheSame(ChaosJob& job, const ChaosEnd& undisturbed) {
    const ChaosEnd end = job.Wait();
    EXPECT_EQ(end.exit_code, 75) << job.Errors();
    EXPECT_EQ(end.certificate, undisturbed.certificate);
    EXPECT_EQ(end.loss_bits, undisturbed.loss_bits);
  }

  const std::string folder_;
};

TEST_F(DrilledJob, AKilledRankAndAKilledAgent) {
  const ChaosEnd undisturbed = Undisturbed(folder_);
  ChaosJob job(folder_, {"--nodes", "4"});
  ASSERT_TRUE(job.AwaitStep(3)) << job.Errors();
  const Json rank = Drill(job, {"--against", folder_ + "/undisturbed"});
  const Json& injury = rank["injuries"][0];
  EXPECT_EQ(injury["failure"], "rank-killed");
  EXPECT_EQ(injury["noticed"], "reported");
  EXPECT_EQ(injury["from"], "memory");
  EXPECT_LE(injury["redone"].get<int>(), 1);
  EXPECT_GT(injury["detect"].get<double>(), 0);
  EXPECT_NEAR(injury["total"].get<double>(),
              injury["detect"].get<double>() + injury["re_form"].get<double>() +
                  injury["restore"].get<double>() + injury["first_step"].get<double>(),
              1e-5);
  EXPECT_EQ(rank["against"]["different"], 0);
  EXPECT_GE(rank["against"]["losses"].get<int>(), 3);
  const Json agent = Drill(job, {"--kind", "agent"});
  EXPECT_THAT(agent["injuries"][0]["noticed"].get<std::string>(),
              testing::AnyOf("silent", "returned"));
  ExpectTheSame(job, undisturbed);
  const auto first = JournalEvents(job.run(), "first_step");
  ASSERT_GE(first.size(), 3U);
  EXPECT_EQ(first[0]["why"], "start");
  EXPECT_EQ(first[1]["why"], "failure");
  EXPECT_TRUE(StatusOf(job.run()).contains("time_to_first_step"));
}

TEST_F(DrilledJob, AKilledNodeAndAKilledCoordinator) {
  const ChaosEnd undisturbed = Undisturbed(folder_);
  ChaosJob job(folder_, {"--nodes", "5", "--set", "job.spares=1"});
  ASSERT_TRUE(job.AwaitStep(3)) << job.Errors();
  // The coordinator sits on the spare node, and is told of all the same.
  const Json status = StatusOf(job.run());
  const auto leads = [&](const Json& member) { return member["node"] == status["coordinator"]; };
  EXPECT_EQ(std::count_if(status["members"].begin(), status["members"].end(), leads), 1) << status;
  const Json node = Drill(job, {"--kind", "node"});
  EXPECT_EQ(node["injuries"][0]["rank"], -1);
  (void)Drill(job, {"--kind", "coordinator"});
  ExpectTheSame(job, undisturbed);
}

// Wherever the bit is.
TEST_F(DrilledJob, FlippedBits) {
  const ChaosEnd undisturbed = Undisturbed(folder_);
  ChaosJob job(folder_, {"--nodes", "4"});
  ASSERT_TRUE(job.AwaitStep(3)) << job.Errors();
  const Json drilled =
      Drill(job, {"--kind", "corrupt", "--count", "3", "--against", folder_ + "/undisturbed"});
  ASSERT_EQ(drilled["injuries"].size(), 3U);
  for (const Json& injury : drilled["injuries"]) {
    EXPECT_EQ(injury["failure"], "silent-corruption");
    EXPECT_EQ(injury["from"], "memory");
    EXPECT_LE(injury["redone"].get<int>(), 2);
  }
  ExpectTheSame(job, undisturbed);
}

// The rank that stands is found by the step that does not end, which takes ten seconds.
TEST_F(DrilledJob, LongAStoppedRank) {
  const ChaosEnd undisturbed = Undisturbed(folder_);
  ChaosJob job(folder_, {"--nodes", "4"});
  ASSERT_TRUE(job.AwaitStep(3)) << job.Errors();
  const Json hang = Drill(job, {"--kind", "hang"});
  EXPECT_EQ(hang["injuries"][0]["noticed"], "stalled");
  EXPECT_GT(hang["injuries"][0]["detect"].get<double>(), 5);
  ExpectTheSame(job, undisturbed);
}

}  // namespace
}  // namespace perdure
