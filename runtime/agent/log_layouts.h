// Where the ranks of generations sit, out of the run log, for whoever looks after a node's ranks.
#pragma once

#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/agent/control_log.h"
#include "runtime/control/layout.h"
#include "runtime/wire/event_loop.h"

namespace perdure {

// How long a START that somebody was told of may take to be seen in the log by others.
inline constexpr absl::Duration kLayoutsMax = absl::Minutes(2);

// Answers, from the loop, with the layouts of those generations in their order; the log is read
// again and again until all are there. DeadlineExceeded: they are not, `within` that time;
// DataLoss: the log is damaged. Both pointers outlive the answer.
void ReadLayouts(EventLoop* loop, ControlLog* log, std::vector<Generation> generations,
                 std::function<void(absl::StatusOr<std::vector<PlacedLayout>>)> then,
                 absl::Duration within = kLayoutsMax);

}  // namespace perdure
