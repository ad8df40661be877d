// Whether a run may live in a directory: what the file system under it does when it is asked for
// what Perdure rests on, instead of what its manual says.
//
// The caller's thread watches; a child process asks, because a file system may never answer. All
// that is written lies in RUN/tmp/doctor.<token>, which is removed in the end, also after an error
// or a signal. Of several tasks, one per node say, each calls ProbeFileSystem with the same token;
// they meet through files in that directory alone, and task 0 gets what all of them have found.
//
// The process has one thread. SIGINT, SIGTERM and SIGHUP are held back meanwhile.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace perdure {

enum class ProbeOutcome { kOk, kWarning, kRefused, kNotTested };
const char* ProbeOutcomeName(ProbeOutcome outcome);  // "ok", "warning", "refused", "not tested".

struct ProbeCheck {
  std::string name;  // "link_race"; ProbeCheckNames has all of them.
  ProbeOutcome outcome = ProbeOutcome::kNotTested;
  std::string seen;
  // What follows from it for a run, and what a person can try. Empty where all is well.
  std::string meaning, advice;
  std::map<std::string, double> numbers;  // What was measured; units are part of the names.
};

struct ProbeOptions {
  std::string run_directory;                // Absolute. Made where it is absent, and then removed.
  uint64_t bytes_max = 256ULL << 20;        // On disk at any time; less where there is little room.
  int tasks = 1;                            // Who take part,
  int task = 0;                             // and which of them this is.
  std::string token;                        // Names the directory; equal in all tasks.
  absl::Duration wait = absl::Seconds(60);  // For a task that has not come.
  absl::Duration stall_after = absl::Seconds(30);  // Without an answer.
};

struct ProbeReport {
  std::vector<ProbeCheck> checks;  // Every one of ProbeCheckNames, in that order.
  bool handed_over = false;        // Not task 0: it has what was found here.
  int signal = 0;                  // Ended by it; the rest is not tested.
  std::string left_behind;         // What could not be removed, and why; empty: nothing.

  bool may_live() const;  // Nothing is refused, nor was it cut short.
  int Count(ProbeOutcome outcome) const;
};

std::vector<std::string> ProbeCheckNames();

// `progress` hears which check begins.
ProbeReport ProbeFileSystem(const ProbeOptions& options,
                            const std::function<void(const std::string& check)>& progress);

}  // namespace perdure
