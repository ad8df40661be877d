// System calls of this test program that fail, stop short or kill on demand. Linking fault_hooks.cc
// replaces the C library's functions for the program and for libhdf5 within it; without a plan they
// do what they always do.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace perdure {

// kWrite: pwritev, our payload; kLibraryWrite: pwrite, libhdf5's metadata; kSmallWrite and
// kSmallRead: write, read, pread, of small files. Calls with and without "at" count as one.
enum class Call {
  kWrite,
  kLibraryWrite,
  kSmallWrite,
  kRead,
  kSmallRead,
  kTruncate,
  kReserve,
  kSync,
  kOpen,
  kOpenDirectory,  // opendir; open with O_DIRECTORY is kOpen.
  kClose,          // Always made: the descriptor is gone whatever it says.
  kStat,
  kLink,
  kRename,
  kUnlink,  // Also rmdir.
  kMakeDirectory,
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
  bool pretend = false;      // Says 0, without the call being made; not of reads and writes.
  std::string under;         // Calls on paths (or descriptors) below this one only; empty: all.
};

// Replaces the plan and starts counting anew.
void SetFaults(const FaultPlan& plan);
void ClearFaults();
// Calls seen, and hit, since then.
int CallsSeen(Call call);
int CallsSeen();
int FaultsHit();

// What was done to files, while a trace is being kept: calls that make or change a name, write, or
// sync, in their order.
struct TracedCall {
  Call call = Call::kCount;
  std::string path;  // Of the file, or the new name.
  bool creates = false;
};
void StartTrace();
std::vector<TracedCall> TakeTrace();

}  // namespace perdure
