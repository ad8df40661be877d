// What a generation costs a process that lives on: making a transport, Connect, a message each way,
// and dropping it, when all leave together, when a peer was killed, and when a peer is stopped; and
// what is left behind. Eight ranks are processes. One line per number; rank 0 measures.
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
#include <vector>

#include "absl/time/clock.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "tests/comm/ranks.h"

namespace perdure {
namespace {

constexpr int kSize = 8;

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

void Exchange(Transport& transport, End end) {
  const bool last = transport.rank() == kSize - 1;
  std::vector<char> out(1 << 20), in(kSize * out.size());
  std::vector<RequestPtr> requests;
  for (int peer = 0; peer < kSize; ++peer) {
    requests.push_back(transport.Recv(peer, 1, in.data() + peer * out.size(), out.size()));
    requests.push_back(transport.Send(peer, 1, out.data(), out.size()));
  }
  const absl::Status status = transport.WaitAll(requests);
  EXPECT_TRUE(status.ok()) << status;
  if (!last || end == End::kTogether) return;
  const absl::Time over = absl::Now() + absl::Milliseconds(50);
  while (absl::Now() < over) transport.Progress();  // The others may not have all of it yet.
  ::raise(end == End::kKilled ? SIGKILL : SIGSTOP);
}

void Measure(const Wiring& wiring, End end, const char* name, int generations) {
  std::vector<double> make, connect, lose, drop;
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
        Exchange(*transport, end);
        begin = absl::Now();
        if (end == End::kStopped) {
          absl::SleepFor(absl::Milliseconds(20));
          begin = absl::Now();
        } else if (end == End::kKilled) {
          EXPECT_FALSE(transport->Wait(transport->Recv(kSize - 1, 2, nullptr, 0)).ok());
        }
        lose.push_back(Since(begin));
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
        Report(wiring, fmt::format("notice the loss ({})", name).c_str(), lose);
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
    perdure::Measure(wiring, perdure::End::kStopped, "peer stopped", 6);
  }
  return testing::Test::HasFailure() ? 1 : 0;
}
