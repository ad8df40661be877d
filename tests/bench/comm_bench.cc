// Latency and bandwidth between two processes, and all-gather and sums among eight, over every
// transport of this machine. One line per number; rank 0 measures.
//
//   comm_bench [label-part]     only the wirings whose label contains it (LocalThreads,
//   UcxProcesses, ...)
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "runtime/comm/group.h"
#include "tests/comm/ranks.h"

namespace perdure {
namespace {

void Check(const absl::Status& status) {
  if (status.ok()) return;
  std::printf("  FAILED: %s\n", status.ToString().c_str());
  std::fflush(stdout);
  std::_Exit(1);
}

// Seconds per call of `what`, the first calls left out.
template <typename What>
double SecondsPerCall(int calls, const What& what) {
  for (int i = 0; i < calls / 10 + 2; ++i) what();
  const absl::Time begin = absl::Now();
  for (int i = 0; i < calls; ++i) what();
  return absl::ToDoubleSeconds(absl::Now() - begin) / calls;
}

void PingPong(Transport& transport, size_t bytes, int calls) {
  std::vector<char> out(bytes, 'x'), in(bytes, 'y');
  const int peer = 1 - transport.rank();
  const double seconds = SecondsPerCall(calls, [&] {
    const RequestPtr receive = transport.Recv(peer, 1, in.data(), bytes);
    if (transport.rank() == 1) Check(transport.Wait(receive));
    Check(transport.Wait(transport.Send(peer, 1, out.data(), bytes)));
    if (transport.rank() == 0) Check(transport.Wait(receive));
  });
  if (transport.rank() == 0)
    std::printf("  ping-pong %9zu B  %10.2f us one way  %7.2f GB/s\n", bytes, seconds / 2 * 1e6,
                static_cast<double>(bytes) / (seconds / 2) / 1e9);
}

// Eight messages under way in one direction.
void Stream(Transport& transport, size_t bytes, int calls) {
  constexpr int kWindow = 8;
  std::vector<char> data(bytes * kWindow, 'x');
  const double seconds = SecondsPerCall(calls, [&] {
    std::vector<RequestPtr> requests;
    for (int i = 0; i < kWindow; ++i)
      requests.push_back(transport.rank() == 0
                             ? transport.Send(1, 1, data.data() + i * bytes, bytes)
                             : transport.Recv(0, 1, data.data() + i * bytes, bytes));
    Check(transport.WaitAll(requests));
  });
  if (transport.rank() == 0)
    std::printf("  stream    %9zu B  %29.2f GB/s\n", bytes,
                static_cast<double>(bytes * kWindow) / seconds / 1e9);
}

void AmongAll(Transport& transport) {
  std::vector<int> members(static_cast<size_t>(transport.size()));
  std::iota(members.begin(), members.end(), 0);
  Group group(&transport, members, 1);
  const auto print = [&](const char* what, size_t bytes, double seconds) {
    if (transport.rank() == 0)
      std::printf("  %-22s %8zu B x %d  %10.1f us\n", what, bytes, group.size(), seconds * 1e6);
  };
  print("barrier", 0, SecondsPerCall(200, [&] { Check(group.Barrier()); }));
  for (const size_t bytes : {size_t{65536}, size_t{1} << 20}) {
    std::vector<char> in(bytes), out(bytes * members.size());
    print("all-gather", bytes,
          SecondsPerCall(20, [&] { Check(group.AllGather(in.data(), bytes, out.data())); }));
  }
  for (const int64_t count : {int64_t{1}, int64_t{1} << 18}) {
    std::vector<float> values(static_cast<size_t>(count));
    print("all-reduce (tree)", values.size() * sizeof(float), SecondsPerCall(20, [&] {
            Check(group.AllReduceTree(values.data(), count, values.data()));
          }));
  }
}

void Connecting(const Wiring& wiring) {
  RunUnconnected(wiring, {.size = 8},
                 [](std::unique_ptr<Transport>& transport, const std::vector<std::string>& table) {
                   const absl::Time begin = absl::Now();
                   Check(transport->Connect(table, kConnectTimeout));
                   if (transport->rank() == 0)
                     std::printf("  connecting 8 ranks     %.1f ms, %zu B of address (%s)\n",
                                 absl::ToDoubleMilliseconds(absl::Now() - begin), table[0].size(),
                                 transport->name().c_str());
                 });
}

}  // namespace
}  // namespace perdure

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const std::string part = argc > 1 ? argv[1] : "";
  for (const perdure::Wiring& wiring : perdure::AllWirings()) {
    if (wiring.label.find(part) == std::string::npos) continue;
    if (!perdure::IsLinked(wiring)) continue;
    std::printf("%s\n", wiring.label.c_str());
    std::fflush(stdout);
    perdure::RunRanks(wiring, 2, [](std::unique_ptr<perdure::Transport>& transport) {
      perdure::PingPong(*transport, 8, 2000);
      perdure::PingPong(*transport, size_t{64} << 10, 500);
      perdure::PingPong(*transport, size_t{1} << 20, 100);
      perdure::PingPong(*transport, size_t{16} << 20, 10);
      perdure::Stream(*transport, size_t{1} << 20, 20);
    });
    perdure::RunRanks(wiring, 8, [](std::unique_ptr<perdure::Transport>& transport) {
      perdure::AmongAll(*transport);
    });
    perdure::Connecting(wiring);
  }
  return 0;
}
