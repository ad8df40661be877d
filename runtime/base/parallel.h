// The same work on many pieces by a few threads: reading, filling and digesting state, never a
// step's arithmetic. Pieces do not meet, so no number depends on the threads.
#pragma once

#include <cstddef>
#include <functional>

#include "absl/status/status.h"

namespace perdure {

// work(0) to work(count - 1), each once, in any order, at most `threads_max` at once; after an
// error no more are begun. Of several errors that of the lowest index, so that a message does not
// depend on threads.
absl::Status ForEachInParallel(size_t count, const std::function<absl::Status(size_t)>& work,
                               size_t threads_max = 4);

// Again, with pauses, while it says Unavailable: what a file system that is busy or fails over may
// give is no evidence against a file.
absl::Status WithRetries(const std::function<absl::Status()>& work);

}  // namespace perdure
