// Runs a test body once per rank, each with a connected transport: as forked processes or as
// threads of one process.
//
// The parent never touches a network library: forking after that is not allowed, so threads run
// inside a forked child too, and only the local transport's threads run in the test's own process.
// Expectations inside a body count.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <ostream>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "runtime/comm/transport.h"

namespace perdure {

struct Wiring {
  std::string label;  // Of the test: letters and digits.
  std::string kind;
  std::string network;
  bool processes = false;
};
std::vector<Wiring> AllWirings();
std::ostream& operator<<(std::ostream& out, const Wiring& wiring);
std::string LabelOf(const testing::TestParamInfo<Wiring>& instance);

// False where this build was linked without the library.
bool IsLinked(const Wiring& wiring);

// May reset the transport.
using Body = std::function<void(std::unique_ptr<Transport>& transport)>;
inline constexpr absl::Duration kConnectTimeout = absl::Seconds(30);

struct RunOptions {
  int size = 2;
  std::set<int> killed;     // Ranks that are to end by SIGKILL; processes only.
  bool may_assert = false;  // A rank may be ended by an assertion of UCX.
  absl::Duration limit = absl::Seconds(60);
};
// As Body, but Connect with the table of all addresses is the body's.
using UnconnectedBody = std::function<void(std::unique_ptr<Transport>& transport,
                                           const std::vector<std::string>& table)>;

// Fails the test if a rank fails, ends in another way than it should, or is not done at the limit.
void RunRanks(const Wiring& wiring, const RunOptions& options, const Body& body);
void RunUnconnected(const Wiring& wiring, const RunOptions& options, const UnconnectedBody& body);
inline void RunRanks(const Wiring& wiring, int size, const Body& body) {
  RunRanks(wiring, RunOptions{.size = size}, body);
}

struct GenerationOptions {
  int size = 2;
  int generations = 1;
  // The last rank is a new process in each generation, and killed when the others are through with
  // it, if it still lives. Processes only.
  bool last_is_new = false;
  absl::Duration limit = absl::Seconds(120);
};
// As UnconnectedBody, of generation 0, 1, ...
using GenerationBody = std::function<void(std::unique_ptr<Transport>& transport,
                                          const std::vector<std::string>& table, int generation)>;
// Ranks that live over generations: in each of them they make a new transport.
void RunGenerations(const Wiring& wiring, const GenerationOptions& options,
                    const GenerationBody& body);

// Calls `body` in a forked child and expects that it ends well.
void RunForked(const std::function<void()>& body, absl::Duration limit = absl::Seconds(60));

}  // namespace perdure
