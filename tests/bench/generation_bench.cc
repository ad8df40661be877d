// What a generation costs a process that lives on: making a transport, Connect, getting out of a
// wait, and dropping the transport, when all stop together, when a peer was killed, and when one is
// stopped by SIGSTOP in the middle of messages; and what is left behind. Eight ranks are processes.
// One line per number; rank 0 measures.
//
//   generation_bench [label-part] [generations]
#include <dirent.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "tests/comm/ranks.h"

namespace perdure {
namespace {

constexpr int kSize = 8;
constexpr size_t kLong = size_t{4} << 20;

enum class End { kTogether, kKilled, kStopped };

int Entries(const char* directory) {
  int count = 0;
  if (DIR* dir = ::opendir(directory)) {
    while (::readdir(dir) != nullptr) ++count;
    ::closedir(dir);
  }
  return count;
}

double ResidentMiB() {
  const std::string statm = ReadFile("/proc/self/statm").value_or("0 0");
  return std::strtod(statm.c_str() + statm.find(' '), nullptr) *
         static_cast<double>(::sysconf(_SC_PAGESIZE)) / (1 << 20);
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

void Report(const Wiring& wiring, const char* what, const std::vector<double>& seconds) {
  std::printf("%-16s %-28s median %8.2f ms  max %8.2f ms\n", wiring.label.c_str(), what,
              1e3 * Median(seconds), 1e3 * *std::max_element(seconds.begin(), seconds.end()));
}

double Since(absl::Time begin) { return absl::ToDoubleSeconds(absl::Now() - begin); }

// All with all, once.
void Exchange(Transport& transport) {
  std::vector<char> out(1 << 20), in(kSize * out.size());
  std::vector<RequestPtr> requests;
  for (int peer = 0; peer < kSize; ++peer) {
    requests.push_back(transport.Recv(peer, 1, in.data() + peer * out.size(), out.size()));
    requests.push_back(transport.Send(peer, 1, out.data(), out.size()));
  }
  const absl::Status status = transport.WaitAll(requests);
  EXPECT_TRUE(status.ok()) << status;
}

// Tells the others when, and dies or stops then, in the middle of long messages with all of them.
void EndAmongMessages(Transport& transport, int signal) {
  const absl::Time when = absl::Now() + absl::Milliseconds(500);
  const int64_t nanoseconds = absl::ToUnixNanos(when);
  std::thread([=] {
    absl::SleepFor(when - absl::Now());
    ::raise(signal);
  }).detach();
  std::vector<char> out(kLong), in(kSize * kLong);
  std::vector<RequestPtr> told;
  for (int peer = 0; peer + 1 < kSize; ++peer)
    told.push_back(transport.Send(peer, 3, &nanoseconds, sizeof nanoseconds));
  (void)transport.WaitAll(told);
  std::vector<RequestPtr> requests(2 * kSize);
  while (true) {
    for (int peer = 0; peer + 1 < kSize; ++peer) {
      RequestPtr& receive = requests[2 * peer];
      RequestPtr& send = requests[2 * peer + 1];
      if (receive == nullptr || receive->done())
        receive = transport.Recv(peer, 2, in.data() + peer * kLong, kLong);
      if (send == nullptr || send->done()) send = transport.Send(peer, 2, out.data(), kLong);
    }
    transport.Progress();
  }
}

// Seconds until this rank is out of a wait: since the last rank was killed, or since Cancel was
// called by another thread, some time after the last rank stopped.
double Stop(Transport& transport, End end) {
  std::vector<char> out(kLong), in(kLong);
  int64_t nanoseconds = 0;
  if (end == End::kTogether)
    nanoseconds = absl::ToUnixNanos(absl::Now());
  else
    EXPECT_TRUE(
        transport.Wait(transport.Recv(kSize - 1, 3, &nanoseconds, sizeof nanoseconds)).ok());
  absl::Time begin = absl::FromUnixNanos(nanoseconds);
  std::thread cancel([&] {
    if (end == End::kKilled) return;
    absl::SleepFor(begin + absl::Milliseconds(100) - absl::Now());
    begin = absl::Now();
    transport.Cancel("a new generation");
  });
  absl::Status status;
  while (status.ok()) {
    const bool alone = end == End::kTogether;  // Nobody answers.
    const RequestPtr requests[] = {
        transport.Recv(alone ? transport.rank() : kSize - 1, 2, in.data(), in.size()),
        alone ? nullptr : transport.Send(kSize - 1, 2, out.data(), out.size())};
    status = transport.WaitAll(requests);
  }
  const absl::Time over = absl::Now();
  cancel.join();
  return absl::ToDoubleSeconds(over - begin);
}

void Measure(const Wiring& wiring, End end, const char* name, int generations) {
  std::vector<double> make, connect, stop, drop;
  int fds = 0, threads = 0;
  double resident = 0;
  RunGenerations(
      wiring,
      {.size = kSize,
       .generations = generations,
       .last_is_new = end != End::kTogether,
       .limit = absl::Seconds(600)},
      [&](std::unique_ptr<Transport>& transport, const std::vector<std::string>& table, int g) {
        const int rank = transport->rank();
        absl::Time begin = absl::Now();
        const absl::Status status = transport->Connect(table, absl::Seconds(60));
        ASSERT_TRUE(status.ok()) << status;
        connect.push_back(Since(begin));
        Exchange(*transport);
        if (rank + 1 == kSize && end != End::kTogether)
          EndAmongMessages(*transport, end == End::kKilled ? SIGKILL : SIGSTOP);
        stop.push_back(Stop(*transport, end));
        begin = absl::Now();
        transport.reset();
        drop.push_back(Since(begin));
        if (g == 4) {
          fds = Entries("/proc/self/fd"), threads = Entries("/proc/self/task");
          resident = ResidentMiB();
        }
        begin = absl::Now();
        transport =
            NewTransport(wiring.kind, {.rank = rank, .size = kSize, .network = wiring.network})
                .value();
        EXPECT_TRUE(transport->LocalAddress().ok());
        make.push_back(Since(begin));
        transport.reset();
        if (g + 1 < generations || rank != 0) return;
        Report(wiring, "make, with its address", make);
        Report(wiring, fmt::format("connect ({})", name).c_str(), connect);
        const char* what = end == End::kKilled ? "killed, noticed" : "Cancel, out of WaitAll";
        Report(wiring, fmt::format("{} ({})", what, name).c_str(), stop);
        Report(wiring, fmt::format("drop ({})", name).c_str(), drop);
        std::printf("%-16s since generation 5: %+d descriptors, %+d threads, %+.1f MiB of %.1f\n",
                    wiring.label.c_str(), Entries("/proc/self/fd") - fds,
                    Entries("/proc/self/task") - threads, ResidentMiB() - resident, resident);
      });
}

}  // namespace
}  // namespace perdure

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const std::string part = argc > 1 ? argv[1] : "";
  const int generations = argc > 2 ? std::atoi(argv[2]) : 50;
  for (const perdure::Wiring& wiring : perdure::AllWirings()) {
    if (!wiring.processes || wiring.label.find(part) == std::string::npos) continue;
    perdure::Measure(wiring, perdure::End::kTogether, "together", generations);
    perdure::Measure(wiring, perdure::End::kKilled, "peer killed", generations);
    perdure::Measure(wiring, perdure::End::kStopped, "peer stopped", generations);
  }
  return testing::Test::HasFailure() ? 1 : 0;
}
