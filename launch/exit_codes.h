// Exit codes of `perdure run`, documented in docs/operating.md; of other commands as far as they
// have the same meaning.
#pragma once

namespace perdure {

inline constexpr int kExitComplete = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitStopped = 75;    // Stopped cleanly; more to do.
inline constexpr int kExitNoRestart = 93;  // A person must look.

}  // namespace perdure
