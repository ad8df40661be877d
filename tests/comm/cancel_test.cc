// What Cancel does, over every transport: wherever the transport's own thread is, it is out soon,
// nothing is written to or read from memory that was given back, and nobody waits for who is gone.
#include <dirent.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "runtime/base/status.h"
#include "runtime/comm/cancellation.h"
#include "runtime/comm/group.h"
#include "runtime/comm/transport.h"
#include "tests/comm/ranks.h"

namespace perdure {
namespace {

using testing::HasSubstr;

constexpr size_t kMiB = size_t{1} << 20;
// It takes a few milliseconds; the machine may have other things to do.
constexpr absl::Duration kSoon = absl::Seconds(1);
constexpr absl::Duration kNoticed = absl::Seconds(5);

void ExpectCancelled(const absl::Status& status, const std::string& reason) {
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr(reason));
}

void ExpectGone(const absl::Status& status, int rank) {
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr(fmt::format("rank {} is gone", rank)));
}

// Calls `what` once, after `delay`, in a thread of its own; that has ended when this has.
class Later {
 public:
  template <typename What>
  Later(absl::Duration delay, What what)
      : thread_([=, this] {
          absl::SleepFor(delay);
          when_ = absl::Now();
          what();
        }) {}
  ~Later() { thread_.join(); }
  Later(const Later&) = delete;
  Later& operator=(const Later&) = delete;

  // Since `what` was called. REQUIRES: it was.
  absl::Duration ago() const { return absl::Now() - when_; }

 private:
  absl::Time when_;
  std::thread thread_;
};

// Memory that ends the process when it is touched after Close().
class Pages {
 public:
  explicit Pages(size_t bytes)
      : bytes_(bytes),
        data_(static_cast<char*>(
            ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {}
  ~Pages() { ::munmap(data_, bytes_); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;

  char* data() const { return data_; }
  void Fill(char value) { std::memset(data_, value, bytes_); }
  bool Holds(char value) const {
    return std::all_of(data_, data_ + bytes_, [=](char c) { return c == value; });
  }
  void Close() { EXPECT_EQ(::mprotect(data_, bytes_, PROT_NONE), 0); }

 private:
  const size_t bytes_;
  char* const data_;
};

int Entries(const char* directory) {
  int count = 0;
  DIR* dir = ::opendir(directory);
  while (::readdir(dir) != nullptr) ++count;
  ::closedir(dir);
  return count;
}

class CancelTest : public testing::TestWithParam<Wiring> {
 protected:
  void SetUp() override {
    if (!IsLinked(GetParam())) GTEST_SKIP() << GetParam().kind << " is not linked into this build";
  }
  const Wiring& wiring() const { return GetParam(); }
};

// With peers that can be killed or stopped.
class CancelProcessTest : public CancelTest {};

std::vector<Wiring> ProcessWirings() {
  std::vector<Wiring> wirings = AllWirings();
  std::erase_if(wirings, [](const Wiring& wiring) { return !wiring.processes; });
  return wirings;
}

INSTANTIATE_TEST_SUITE_P(All, CancelTest, testing::ValuesIn(AllWirings()), LabelOf);
INSTANTIATE_TEST_SUITE_P(All, CancelProcessTest, testing::ValuesIn(ProcessWirings()), LabelOf);

// Everything that can be asked of a transport that was told to stop because of `reason`.
void ExpectStopped(Transport& transport, const std::string& reason) {
  char byte = 0;
  ExpectCancelled(transport.cancelled(), reason);
  ExpectCancelled(transport.LocalAddress().status(), reason);
  ExpectCancelled(transport.Connect({}, kConnectTimeout), reason);
  for (int peer = 0; peer < transport.size(); ++peer) {
    const RequestPtr requests[] = {transport.Send(peer, 90, &byte, 1),
                                   transport.Recv(peer, 91, &byte, 1)};
    for (const RequestPtr& request : requests) {
      ASSERT_TRUE(request->done());
      ExpectCancelled(request->status(), reason);
    }
    ExpectCancelled(transport.WaitAll(requests), reason);
    if (peer != transport.rank()) transport.FailPeer(peer, "too late");
  }
  ExpectCancelled(transport.WaitAll({}), reason);
  transport.Progress();
  EXPECT_FALSE(transport.name().empty());
}

TEST_P(CancelTest, WakesAWaitThatSleeps) {
  RunRanks(wiring(), 3, [](std::unique_ptr<Transport>& transport) {
    std::vector<char> data(kMiB);
    if (transport->rank() != 0) {
      const RequestPtr receive = transport->Recv(0, 1, data.data(), 8);
      const absl::Time begin = absl::Now();
      ExpectGone(transport->Wait(receive), 0);
      EXPECT_LT(absl::Now() - begin, kNoticed);
      const int other = 3 - transport->rank();  // Nothing is wrong between these two.
      const RequestPtr both[] = {transport->Recv(other, 3, data.data(), 8),
                                 transport->Send(other, 3, data.data() + 8, 8)};
      const absl::Status status = transport->WaitAll(both);
      EXPECT_TRUE(status.ok()) << status;
      return;
    }
    const RequestPtr requests[] = {
        transport->Recv(1, 1, data.data(), 8), transport->Recv(0, 1, data.data(), 8),
        transport->Recv(2, 2, data.data(), data.size()),
        transport->Send(1, 2, data.data(), data.size())};  // Nobody takes it.
    const Later cancel(absl::Milliseconds(80), [&] { transport->Cancel("a new generation"); });
    ExpectCancelled(transport->WaitAll(requests), "a new generation");
    EXPECT_LT(cancel.ago(), kSoon);
    for (const RequestPtr& request : requests) {
      ASSERT_TRUE(request->done());
      ExpectCancelled(request->status(), "a new generation");
    }
    ExpectStopped(*transport, "a new generation");
    const absl::Time begin = absl::Now();
    transport.reset();
    EXPECT_LT(absl::Now() - begin, kSoon);
  });
}

TEST_P(CancelTest, IsHeardByARankThatNeverSleeps) {
  RunRanks(wiring(), 2, [](std::unique_ptr<Transport>& transport) {
    char byte = 0;
    if (transport->rank() == 1)
      return ExpectGone(transport->Wait(transport->Recv(0, 1, &byte, 1)), 0);
    const RequestPtr receive = transport->Recv(1, 1, &byte, 1);
    const Later cancel(absl::Milliseconds(20), [&] { transport->Cancel("enough"); });
    while (!receive->done()) transport->Progress();
    EXPECT_LT(cancel.ago(), kSoon);
    ExpectCancelled(receive->status(), "enough");
  });
}

// What is done stays done, but the rank hears that it is to stop.
TEST_P(CancelTest, BetweenTwoCalls) {
  RunRanks(wiring(), 2, [](std::unique_ptr<Transport>& transport) {
    const int peer = 1 - transport->rank();
    int sent = transport->rank(), got = -1;
    const RequestPtr both[] = {transport->Recv(peer, 1, &got, sizeof got),
                               transport->Send(peer, 1, &sent, sizeof sent)};
    ASSERT_TRUE(transport->WaitAll(both).ok());
    transport->Cancel("stop");
    ExpectCancelled(transport->WaitAll(both), "stop");
    EXPECT_TRUE(both[0]->status().ok() && both[1]->status().ok());
    EXPECT_EQ(got, peer);
    Group group(transport.get(), {0, 1}, 1);
    ExpectCancelled(group.Watch(), "stop");
    ExpectCancelled(group.Barrier(), "stop");
    ExpectCancelled(Group(transport.get(), {transport->rank()}, 2).Barrier(), "stop");
    ExpectStopped(*transport, "stop");
  });
}

TEST_P(CancelTest, BeforeConnect) {
  RunUnconnected(wiring(), {.size = 2}, [](auto& transport, const auto& table) {
    if (transport->rank() == 1 && transport->name() != "local") {
      const absl::Status status = transport->Connect(table, absl::Milliseconds(500));
      EXPECT_TRUE(absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status)) << status;
      return;
    }
    transport->Cancel("not needed");
    ExpectCancelled(transport->Connect(table, kConnectTimeout), "not needed");
    ExpectStopped(*transport, "not needed");
  });
}

TEST_P(CancelTest, TheFirstReasonOfManyStays) {
  RunRanks(wiring(), 2, [](std::unique_ptr<Transport>& transport) {
    const int peer = 1 - transport->rank();
    absl::Status status;
    {
      std::vector<std::unique_ptr<Later>> cancels;
      for (const char* reason : {"first", "second", "third", "fourth"})
        cancels.push_back(std::make_unique<Later>(absl::Milliseconds(30),
                                                  [&, reason] { transport->Cancel(reason); }));
      status = transport->Wait(transport->Recv(peer, 1, nullptr, 0));
    }
    // Its peer may have been faster.
    if (absl::IsUnavailable(status)) status = transport->WaitAll({});
    EXPECT_TRUE(absl::IsCancelled(status)) << status;
    transport->Cancel("fifth");
    EXPECT_EQ(transport->WaitAll({}), status);
    EXPECT_EQ(transport->cancelled(), status);
  });
}

// Two ranks of which one does not come: the lower waits to be called, the higher calls.
TEST_P(CancelTest, WhilePeersHaveNotCome) {
  const auto body = [&] {
    const auto hub = wiring().kind == "local" ? NewLocalHub(3) : nullptr;
    std::vector<std::unique_ptr<Transport>> transports;
    std::vector<std::string> table;
    for (int rank = 0; rank < 2; ++rank) {
      const TransportOptions options{.rank = rank, .size = 3, .network = wiring().network};
      transports.push_back(NewTransport(wiring().kind, options, hub).value());
      table.push_back(transports.back()->LocalAddress().value());
    }
    std::unique_ptr<Transport> absent;
    if (hub != nullptr) {
      table.push_back(table[0]);
      table[2].back() = '2';
    } else {
      const TransportOptions options{.rank = 2, .size = 3, .network = wiring().network};
      absent = NewTransport(wiring().kind, options).value();
      table.push_back(absent->LocalAddress().value());
    }
    for (const std::unique_ptr<Transport>& transport : transports) {
      const Later cancel(absl::Milliseconds(50), [&] { transport->Cancel("it has left"); });
      ExpectCancelled(transport->Connect(table, kConnectTimeout), "it has left");
      EXPECT_LT(cancel.ago(), kSoon);
      ExpectStopped(*transport, "it has left");
    }
    const absl::Time begin = absl::Now();
    transports.clear();
    EXPECT_LT(absl::Now() - begin, kSoon);
  };
  if (wiring().kind == "local")
    body();
  else
    RunForked(body);
}

// One stops (it is alive, and does nothing) somewhere in Connect.
TEST_P(CancelProcessTest, WhileConnectingToAStoppedPeer) {
  if (wiring().network == "shm") GTEST_SKIP() << "libfabric's shm shares locks with the stopped";
  constexpr std::array kMicroseconds = {0, 1000, 3000, 10000, 30000};
  RunGenerations(
      wiring(), {.size = 3, .generations = kMicroseconds.size(), .last_is_new = true},
      [&](std::unique_ptr<Transport>& transport, const auto& table, int generation) {
        if (transport->rank() == 2) {
          std::thread([=] {
            absl::SleepFor(absl::Microseconds(kMicroseconds[static_cast<size_t>(generation)]));
            ::raise(SIGSTOP);
          }).detach();
          (void)transport->Connect(table, kConnectTimeout);
          absl::SleepFor(kConnectTimeout);
        }
        absl::Time over;
        {
          const Later cancel(absl::Milliseconds(100), [&] { transport->Cancel("stopped"); });
          absl::Status status = transport->Connect(table, kConnectTimeout);
          if (status.ok()) status = transport->Wait(transport->Recv(2, 1, nullptr, 0));
          // The other may have been faster.
          if (absl::IsUnavailable(status))
            status = transport->Wait(transport->Recv(2, 1, nullptr, 0));
          over = absl::Now();
        }
        while (transport->cancelled().ok()) absl::SleepFor(absl::Milliseconds(1));
        const absl::Time begin = absl::Now();
        transport.reset();
        EXPECT_LT(absl::Now() - begin, kSoon);
      });
}

// --- messages under way

constexpr std::array<size_t, 6> kSizes = {8, 3000, 3 * kMiB, 16, 40000, 300000};
constexpr size_t kRoom = 3 * kMiB;

char ByteOf(int sender, int round) {
  return static_cast<char>(1 + (sender * 31 + round * 7) % 120);
}

// Rounds of messages with one peer, all of a round of one byte value, until an error; that a
// message which ends well is the right one is checked.
class Talk {
 public:
  Talk(Transport* transport, int peer)
      : transport_(transport), peer_(peer), out_(kRoom), in_(kSizes.size() * kRoom) {}

  std::vector<RequestPtr> Start() {
    out_.Fill(ByteOf(transport_->rank(), round_));
    std::vector<RequestPtr> requests;
    for (size_t i = 0; i < kSizes.size(); ++i) {
      requests.push_back(transport_->Recv(peer_, i, in_.data() + i * kRoom, kSizes[i]));
      requests.push_back(transport_->Send(peer_, i, out_.data(), kSizes[i]));
    }
    return requests;
  }
  // REQUIRES: the requests of Start are done.
  void Check(const std::vector<RequestPtr>& requests) {
    const char byte = ByteOf(peer_, round_++);
    for (size_t i = 0; i < kSizes.size(); ++i) {
      if (!requests[2 * i]->status().ok()) continue;
      const char* begin = in_.data() + i * kRoom;
      EXPECT_TRUE(std::all_of(begin, begin + kSizes[i], [=](char c) { return c == byte; }))
          << "rank " << transport_->rank() << " took something else for message " << i << " of "
          << kSizes[i] << " bytes from rank " << peer_ << " in round " << round_;
    }
  }
  absl::Status Rounds() {
    while (true) {
      const std::vector<RequestPtr> requests = Start();
      const absl::Status status = transport_->WaitAll(requests);
      for (const RequestPtr& request : requests) EXPECT_TRUE(request->done());
      Check(requests);
      if (!status.ok()) return status;
    }
  }
  Pages& out() { return out_; }
  Pages& in() { return in_; }

 private:
  Transport* const transport_;
  const int peer_;
  Pages out_, in_;
  int round_ = 0;
};

// Rank 0 is told to stop at some moment. Its memory is used for something else at once, or is no
// memory any more; its peer must not take that for a message, and must not write there.
TEST_P(CancelTest, MemoryIsGivenBackForGood) {
  for (int i = 0; i < 12; ++i)
    RunRanks(wiring(), 2, [i](std::unique_ptr<Transport>& transport) {
      Talk talk(transport.get(), 1 - transport->rank());
      if (transport->rank() == 1) return ExpectGone(talk.Rounds(), 0);
      const Later cancel(absl::Milliseconds(5) + i * absl::Microseconds(2300),
                         [&] { transport->Cancel("told so"); });
      ExpectCancelled(talk.Rounds(), "told so");
      EXPECT_LT(cancel.ago(), kSoon);
      const bool reads = i % 2 == 0;
      for (Pages* pages : {&talk.in(), &talk.out()}) reads ? pages->Fill(-1) : pages->Close();
      if (i % 4 < 2) transport.reset();
      absl::SleepFor(absl::Milliseconds(20));
      if (reads) EXPECT_TRUE(talk.in().Holds(-1));
      const absl::Time begin = absl::Now();
      transport.reset();
      EXPECT_LT(absl::Now() - begin, kSoon);
    });
}

// Rank 0 gives up a long message that rank 1 has not looked at yet: some libraries would fetch it
// out of rank 0's memory, whatever lies there now.
TEST_P(CancelTest, WhatWasGivenUpIsNotTakenForAMessage) {
  for (const bool cancels : {true, false})
    RunRanks(wiring(), 2, [=](std::unique_ptr<Transport>& transport) {
      Pages memory(kRoom);
      memory.Fill('m');
      if (transport->rank() == 1) {
        absl::SleepFor(absl::Milliseconds(200));
        const RequestPtr receive = transport->Recv(0, 1, memory.data(), kRoom);
        ExpectGone(transport->Wait(receive), 0);
        return ExpectGone(transport->Wait(transport->Recv(0, 2, memory.data(), kRoom)), 0);
      }
      const RequestPtr sends[] = {transport->Send(1, 1, memory.data(), kRoom),
                                  transport->Send(1, 2, memory.data(), kRoom)};
      const absl::Time over = absl::Now() + absl::Milliseconds(50);
      while (absl::Now() < over) transport->Progress();
      if (cancels) {
        transport->Cancel("enough");
        ExpectCancelled(transport->WaitAll(sends), "enough");
      } else {
        transport.reset();
      }
      memory.Fill(-1);
      absl::SleepFor(absl::Milliseconds(400));  // The memory stays what it is.
    });
}

// Likewise where no word was said: rank 0 drops its transport with messages under way.
TEST_P(CancelTest, SoItIsByDestruction) {
  for (int i = 0; i < 6; ++i)
    RunRanks(wiring(), 2, [i](std::unique_ptr<Transport>& transport) {
      Talk talk(transport.get(), 1 - transport->rank());
      if (transport->rank() == 1) return ExpectGone(talk.Rounds(), 0);
      const std::vector<RequestPtr> requests = talk.Start();
      const absl::Time over = absl::Now() + i * absl::Microseconds(700);
      while (absl::Now() < over) transport->Progress();
      transport.reset();
      for (Pages* pages : {&talk.in(), &talk.out()}) i % 2 == 0 ? pages->Fill(-1) : pages->Close();
      absl::SleepFor(absl::Milliseconds(20));
      if (i % 2 == 0) EXPECT_TRUE(talk.in().Holds(-1));
    });
}

// All at once, in the middle of exchanges of all with all.
TEST_P(CancelTest, EverybodyIsToldToStop) {
  RunRanks(wiring(), 4, [](std::unique_ptr<Transport>& transport) {
    std::vector<char> in(4 * kMiB), out(kMiB);
    const Later cancel(absl::Milliseconds(40), [&] { transport->Cancel("the end"); });
    absl::Status status;
    while (!absl::IsCancelled(status)) {
      std::vector<RequestPtr> requests;
      for (size_t peer = 0; peer < 4; ++peer) {
        requests.push_back(transport->Recv(static_cast<int>(peer), 1, &in[peer * kMiB], kMiB));
        requests.push_back(transport->Send(static_cast<int>(peer), 1, out.data(), kMiB));
      }
      status = transport->WaitAll(requests);
    }
    EXPECT_LT(cancel.ago(), kSoon);
    ExpectCancelled(status, "the end");
    const absl::Time begin = absl::Now();
    transport.reset();
    EXPECT_LT(absl::Now() - begin, kSoon);
  });
}

// --- generations

// Whether what a process holds has stopped growing.
class Footprint {
 public:
  // After a generation; the first few set the mark.
  void Check(int generation) {
    const int descriptors = Entries("/proc/self/fd"), threads = Entries("/proc/self/task");
    if (generation < 3) {
      descriptors_ = std::max(descriptors_, descriptors);
      threads_ = std::max(threads_, threads);
    } else {
      EXPECT_LE(descriptors, descriptors_) << "descriptors, generation " << generation;
      EXPECT_LE(threads, threads_) << "threads, generation " << generation;
    }
  }

 private:
  int descriptors_ = 0, threads_ = 0;
};

// Ranks live on; in each generation one dies, or stops to answer, in the middle of its messages.
TEST_P(CancelProcessTest, GenerationsThatLoseARank) {
  if (wiring().network == "shm") GTEST_SKIP() << "libfabric's shm shares locks with the dead";
  Footprint footprint;
  RunGenerations(
      wiring(), {.size = 4, .generations = 12, .last_is_new = true},
      [&](std::unique_ptr<Transport>& transport, const auto& table, int generation) {
        const absl::Status connected = transport->Connect(table, kConnectTimeout);
        ASSERT_TRUE(connected.ok()) << connected;
        const bool stops = generation % 2 == 1;
        const int rank = transport->rank();
        if (rank == 3) {
          Talk first(transport.get(), 0), second(transport.get(), 1), third(transport.get(), 2);
          const Later die(absl::Milliseconds(15), [=] { ::raise(stops ? SIGSTOP : SIGKILL); });
          while (true) {
            Talk* const talks[] = {&first, &second, &third};
            std::vector<std::vector<RequestPtr>> all;
            for (Talk* talk : talks) all.push_back(talk->Start());
            for (size_t i = 0; i < all.size(); ++i) {
              (void)transport->WaitAll(all[i]);
              talks[i]->Check(all[i]);
            }
          }
        }
        Talk talk(transport.get(), 3);
        std::optional<Later> cancel;  // A death shows; who stops is noticed elsewhere, and told.
        if (stops)
          cancel.emplace(absl::Milliseconds(40), [&] { transport->Cancel("it is stuck"); });
        const absl::Status status = talk.Rounds();
        if (stops)
          ExpectCancelled(status, "it is stuck");
        else
          ExpectGone(status, 3);
        cancel.reset();
        for (Pages* pages : {&talk.in(), &talk.out()}) pages->Close();
        const absl::Time begin = absl::Now();
        transport.reset();
        EXPECT_LT(absl::Now() - begin, kSoon);
        // Where UCX may neither fetch nor close, what a stopped peer was filling is left behind.
        if (wiring().network != "^cma") footprint.Check(generation);
      });
}

TEST_P(CancelTest, GenerationsLeaveNothingBehind) {
  std::array<Footprint, 3> footprints;
  RunGenerations(wiring(), {.size = 3, .generations = 8},
                 [&](std::unique_ptr<Transport>& transport, const auto& table, int generation) {
                   const absl::Status connected = transport->Connect(table, kConnectTimeout);
                   ASSERT_TRUE(connected.ok()) << connected;
                   const int rank = transport->rank();
                   Talk talk(transport.get(), (rank + 1) % 3),
                       back(transport.get(), (rank + 2) % 3);
                   const auto first = talk.Start(), second = back.Start();
                   EXPECT_TRUE(transport->WaitAll(first).ok());
                   EXPECT_TRUE(transport->WaitAll(second).ok());
                   talk.Check(first), back.Check(second);
                   // Who cancels takes back what others have not taken yet.
                   (void)Group(transport.get(), {0, 1, 2}, 1).Barrier();
                   if (generation % 3 == rank) transport->Cancel("next");
                   transport.reset();
                   // Threads share what is counted.
                   if (wiring().processes) footprints[static_cast<size_t>(rank)].Check(generation);
                 });
}

TEST(CancellationTest, SaysWhyAndWakes) {
  const auto cancellation = Cancellation::New().value();
  EXPECT_FALSE(cancellation->set());
  EXPECT_TRUE(cancellation->status().ok());
  cancellation->Set("a reason");
  cancellation->Set("another");
  EXPECT_TRUE(cancellation->set());
  ExpectCancelled(cancellation->status(), "a reason");
}

}  // namespace
}  // namespace perdure
