// A rank that is a thread of the test, and its agent's end of the line.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "ckpt/packed_report.h"
#include "runtime/agent/rank_frames.h"
#include "runtime/agent/rank_main.h"
#include "runtime/agent/rank_page.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/train/writers.h"
#include "runtime/wire/event_loop.h"
#include "tests/ckpt/test_state.h"
#include "tests/train/trainer_harness.h"

namespace perdure {

inline constexpr char kRunId[] = "0123456789abcdef0123456789abcdef";
inline constexpr char kConfigText[] = "the configuration";
inline constexpr absl::Duration kLong = absl::Hours(1);

inline absl::StatusOr<RunConfig> ParseTiny(const std::string& text) {
  if (text == "bytes") return NotFound("open /{}: no", "\xff");
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
          std::holds_alternative<from_rank::OlderMayGo>(*frame) ||
          std::holds_alternative<from_rank::NoSnapshots>(*frame))
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
    EXPECT_THAT(error.message, testing::HasSubstr(message));
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

}  // namespace perdure
