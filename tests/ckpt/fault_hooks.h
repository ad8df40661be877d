// System calls of this test program that fail, stop short or kill on demand. Linking fault_hooks.cc
// replaces the C library's functions for the program and for libhdf5 within it; without a plan they
// do what they always do.
#pragma once

#include <array>
#include <cstddef>

namespace perdure {

// kWrite: pwritev, our payload; kLibraryWrite: pwrite, libhdf5's metadata.
enum class Call {
  kWrite,
  kLibraryWrite,
  kRead,
  kTruncate,
  kReserve,
  kSync,
  kLink,
  kUnlink,
  kCount
};

struct FaultPlan {
  Call call = Call::kCount;  // kCount: any of them.
  int nth = 1;               // The first one that is hit;
  int times = 1;             // and how many from there on.
  int error = 0;             // errno, without the call being made.
  bool after = false;        // ... or with it being made: the reply is lost.
  size_t short_bytes = 0;    // Reads and writes: at most that many bytes.
  bool exit = false;         // _exit(137) instead of the call.
};

// Replaces the plan and starts counting anew.
void SetFaults(const FaultPlan& plan);
void ClearFaults();
// Calls seen, and hit, since then.
int CallsSeen(Call call);
int FaultsHit();

}  // namespace perdure
