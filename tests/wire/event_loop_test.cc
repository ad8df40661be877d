// The event loop: descriptors that vanish under it, timers, children, signals, other threads.
#include "runtime/wire/event_loop.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <string>
#include <thread>

#include "absl/time/clock.h"

namespace perdure {
namespace {

class EventLoopTest : public testing::Test {
 protected:
  EventLoopTest() : loop_(*EventLoop::New()) {}

  struct Pipe {
    UniqueFd out, in;  // Read from `out`.
  };
  static Pipe MakePipe() {
    std::array<int, 2> ends{};
    EXPECT_EQ(::pipe2(ends.data(), O_CLOEXEC | O_NONBLOCK), 0);
    return {UniqueFd(ends[0]), UniqueFd(ends[1])};
  }
  static void Ring(const Pipe& pipe) { EXPECT_EQ(::write(pipe.in.get(), "x", 1), 1); }
  // A round that does not sleep long.
  void Round() { loop_->RunOnce(MonotonicNow() + absl::Seconds(5)); }
  void ShortRound() { loop_->RunOnce(MonotonicNow() + absl::Milliseconds(1)); }

  const std::unique_ptr<EventLoop> loop_;
};

TEST_F(EventLoopTest, CallsWhoseDescriptorIsReadyUntilItIsRead) {
  const Pipe pipe = MakePipe();
  int calls = 0;
  ASSERT_TRUE(loop_
                  ->AddFd(pipe.out.get(), EPOLLIN,
                          [&](uint32_t events) {
                            EXPECT_EQ(events, EPOLLIN);
                            ++calls;
                          })
                  .ok());
  ShortRound();
  EXPECT_EQ(calls, 0);
  Ring(pipe);
  Round();
  Round();
  EXPECT_EQ(calls, 2);  // Level-triggered.
  loop_->ChangeFd(pipe.out.get(), 0);
  ShortRound();
  EXPECT_EQ(calls, 2);
  loop_->ChangeFd(pipe.out.get(), EPOLLIN);
  Round();
  EXPECT_EQ(calls, 3);
  loop_->RemoveFd(pipe.out.get());
  loop_->RemoveFd(pipe.out.get());  // Twice does no harm.
  ShortRound();
  EXPECT_EQ(calls, 3);
}

TEST_F(EventLoopTest, ADescriptorThatCannotBeWatchedIsAnError) {
  std::string name = testing::TempDir() + "event_loop_test.XXXXXX";
  const UniqueFd file(::mkostemp(name.data(), O_CLOEXEC));
  ASSERT_TRUE(file.open());
  ::unlink(name.c_str());
  const absl::Status status = loop_->AddFd(file.get(), EPOLLIN, [](uint32_t) {});
  EXPECT_FALSE(status.ok());
  EXPECT_NE(status.message().find("watch descriptor"), std::string::npos) << status;
}

TEST_F(EventLoopTest, ACallbackMayRemoveItselfAndItsNeighbour) {
  // Both are ready in one round; whichever comes first removes both, closes them, and another
  // descriptor of the same number is there before the round ends.
  std::array<Pipe, 2> pipes = {MakePipe(), MakePipe()};
  std::vector<Pipe> others;
  int calls = 0, calls_of_others = 0;
  for (Pipe& pipe : pipes) {
    const std::string kept(100, 'k');  // On the heap: whoever destroys the callback frees it.
    ASSERT_TRUE(loop_
                    ->AddFd(pipe.out.get(), EPOLLIN,
                            [&, kept](uint32_t) {
                              ++calls;
                              for (Pipe& each : pipes) {
                                loop_->RemoveFd(each.out.get());
                                each = Pipe{};
                              }
                              EXPECT_EQ(kept, std::string(100, 'k'));
                              for (int i = 0; i < 4; ++i) {
                                others.push_back(MakePipe());
                                EXPECT_TRUE(loop_
                                                ->AddFd(others.back().out.get(), EPOLLIN,
                                                        [&](uint32_t) { ++calls_of_others; })
                                                .ok());
                              }
                            })
                    .ok());
  }
  for (const Pipe& pipe : pipes) Ring(pipe);
  Round();
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(calls_of_others, 0);
  for (const Pipe& pipe : others) Ring(pipe);
  Round();
  EXPECT_EQ(calls_of_others, 4);
}

TEST_F(EventLoopTest, WhatARemovedCallbackHeldMayRemoveOthers) {
  const Pipe pipe = MakePipe(), other = MakePipe();
  int calls = 0;
  ASSERT_TRUE(loop_->AddFd(other.out.get(), EPOLLIN, [&](uint32_t) { ++calls; }).ok());
  std::shared_ptr<void> held(nullptr, [&](void*) { loop_->RemoveFd(other.out.get()); });
  ASSERT_TRUE(loop_->AddFd(pipe.out.get(), EPOLLIN, [held](uint32_t) {}).ok());
  held.reset();
  loop_->RemoveFd(pipe.out.get());
  ShortRound();
  Ring(other);
  ShortRound();
  EXPECT_EQ(calls, 0);
}

TEST_F(EventLoopTest, HasOneReadBuffer) {
  const std::span<uint8_t> buffer = loop_->ReadBuffer();
  EXPECT_EQ(buffer.size(), EventLoop::kReadBytes);
  EXPECT_EQ(buffer.data(), loop_->ReadBuffer().data());
}

TEST_F(EventLoopTest, TimersFireInOrderAndNotBefore) {
  const absl::Time begin = MonotonicNow();
  std::vector<int> order;
  const auto add = [&](int number, absl::Duration after) {
    return loop_->AddTimer(begin + after, [&order, number] { order.push_back(number); });
  };
  add(3, absl::Milliseconds(30));
  add(1, absl::Milliseconds(10));
  const EventLoop::TimerId cancelled = add(9, absl::Milliseconds(15));
  add(2, absl::Milliseconds(10));  // At the same time: as they were added.
  loop_->CancelTimer(cancelled);
  loop_->CancelTimer({});
  add(4, absl::Microseconds(30500));
  while (order.size() < 4) Round();
  EXPECT_EQ(order, (std::vector<int>{1, 2, 3, 4}));
  EXPECT_GE(MonotonicNow() - begin, absl::Microseconds(30500));
  ShortRound();
  EXPECT_EQ(order.size(), 4U);
}

TEST_F(EventLoopTest, TimersMayAddAndCancelTimers) {
  int rounds = 0, never = 0;
  EventLoop::TimerId victim;
  const absl::Time now = MonotonicNow();
  loop_->AddTimer(now, [&] { loop_->CancelTimer(victim); });
  victim = loop_->AddTimer(now, [&] { ++never; });
  // One that always adds one that is due does not keep the round from ending.
  std::function<void()> again = [&] {
    ++rounds;
    loop_->AddTimer(now, again);
  };
  again();
  for (int i = 0; i < 5; ++i) Round();
  EXPECT_EQ(rounds, 6);
  EXPECT_EQ(never, 0);
}

TEST_F(EventLoopTest, DeferredWorkRunsOnceAtTheEndOfTheRound) {
  std::string story;
  const Pipe pipe = MakePipe();
  ASSERT_TRUE(loop_
                  ->AddFd(pipe.out.get(), EPOLLIN,
                          [&](uint32_t) {
                            story += "event ";
                            loop_->Defer([&] {
                              story += "deferred ";
                              loop_->Defer([&] { story += "next "; });
                            });
                            loop_->RemoveFd(pipe.out.get());
                          })
                  .ok());
  loop_->AddTimer(MonotonicNow(), [&] { story += "timer "; });
  Ring(pipe);
  Round();
  EXPECT_EQ(story, "event timer deferred ");
  Round();  // Does not sleep: there is something to do.
  EXPECT_EQ(story, "event timer deferred next ");
}

pid_t ForkChild(const std::function<int()>& body) {
  const pid_t pid = ::fork();
  if (pid == 0) ::_exit(body());
  return pid;
}

TEST_F(EventLoopTest, ToldHowAChildEnded) {
  std::map<pid_t, int> ended;
  const auto watch = [&](pid_t pid) {
    EXPECT_TRUE(loop_->AddChild(pid, [&ended, pid](int status) { ended[pid] = status; }).ok());
    return pid;
  };
  const pid_t exits = watch(ForkChild([] { return 7; }));
  const pid_t killed = watch(ForkChild([] { return ::pause(); }));
  const pid_t ignored = watch(ForkChild([] { return 0; }));
  loop_->RemoveChild(ignored);
  ASSERT_EQ(::kill(killed, SIGKILL), 0);
  while (ended.size() < 2) Round();
  EXPECT_TRUE(WIFEXITED(ended[exits]) && WEXITSTATUS(ended[exits]) == 7);
  EXPECT_TRUE(WIFSIGNALED(ended[killed]) && WTERMSIG(ended[killed]) == SIGKILL);
  EXPECT_EQ(::waitpid(exits, nullptr, WNOHANG), -1);  // No zombie.
  EXPECT_EQ(::waitpid(ignored, nullptr, 0), ignored);
  EXPECT_FALSE(ended.contains(ignored));
}

TEST_F(EventLoopTest, AChildThatAnotherReapedAndAProcessThatIsNone) {
  int status = 0;
  const pid_t pid = ForkChild([] { return 0; });
  ASSERT_TRUE(loop_->AddChild(pid, [&](int wait_status) { status = wait_status; }).ok());
  ASSERT_EQ(::waitpid(pid, nullptr, 0), pid);
  while (status == 0) Round();
  EXPECT_EQ(status, -1);
  EXPECT_FALSE(loop_->AddChild(pid, [](int) {}).ok());
}

TEST_F(EventLoopTest, SignalsArriveAsCalls) {
  std::vector<int> got;
  ASSERT_TRUE(
      loop_->AddSignals(std::array{SIGUSR1, SIGUSR2}, [&](int signal) { got.push_back(signal); })
          .ok());
  ::raise(SIGUSR2);
  Round();
  ::raise(SIGUSR1);
  Round();
  EXPECT_EQ(got, (std::vector<int>{SIGUSR2, SIGUSR1}));
}

TEST(EventLoopSignals, MaskIsAsBeforeAfterwards) {
  {
    const std::unique_ptr<EventLoop> loop = *EventLoop::New();
    ASSERT_TRUE(loop->AddSignals(std::array{SIGUSR1}, [](int) {}).ok());
  }
  sigset_t now;
  ASSERT_EQ(::pthread_sigmask(SIG_BLOCK, nullptr, &now), 0);
  EXPECT_EQ(::sigismember(&now, SIGUSR1), 0);
}

TEST_F(EventLoopTest, OtherThreadsWakeIt) {
  constexpr int kThreads = 4, kEach = 100;
  int sum = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i)
    threads.emplace_back([&] {
      for (int k = 0; k < kEach; ++k)
        while (!loop_->Post([&sum] { ++sum; })) std::this_thread::yield();
    });
  while (sum < kThreads * kEach) Round();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(sum, kThreads * kEach);
}

TEST_F(EventLoopTest, WhatIsPostedIsBounded) {
  int ran = 0;
  for (size_t i = 0; i < EventLoop::kPostedMax; ++i) EXPECT_TRUE(loop_->Post([&] { ++ran; }));
  EXPECT_FALSE(loop_->Post([&] { ++ran; }));
  Round();
  EXPECT_EQ(ran, EventLoop::kPostedMax);
  EXPECT_TRUE(loop_->Post([&] { ++ran; }));
}

TEST_F(EventLoopTest, RunEndsWhenStopped) {
  std::atomic<bool> stopped = false;
  loop_->AddTimer(MonotonicNow() + absl::Milliseconds(5), [&] {
    stopped = true;
    loop_->Stop();
  });
  loop_->Run();
  EXPECT_TRUE(stopped);
}

TEST_F(EventLoopTest, ASleepEndsInTimeAndNotBefore) {
  const absl::Time begin = MonotonicNow();
  loop_->RunOnce(begin + absl::Milliseconds(20));
  EXPECT_GE(MonotonicNow() - begin, absl::Milliseconds(20));
}

}  // namespace
}  // namespace perdure
