// A file system that does not do what it says, for this test program and its children: linking
// lying_file_system.cc replaces the C library's calls. It tells one lie at a time, on paths with a
// certain part only; without one it does what it always does.
#pragma once

#include <string>

namespace perdure {

enum class Lie {
  kNone,
  kError,           // Calls of the kind `call` fail with `error`.
  kLinkOverwrites,  // link onto an existing name succeeds and replaces it.
  kLinkRaces,       // As in a race: link looks first and replaces then.
  kLinkAlwaysTwo,   // st_nlink is 2 whatever happens.
  kLinkAlwaysOne,
  kExclusiveIgnored,  // O_EXCL is.
  kRenameUnlinksFirst,
  kRenameCopies,     // Writes the old name's bytes over the new name's.
  kModesIgnored,     // Every file shows mode 0755,
  kOwnerChanged,     // or another owner.
  kSizeShort,        // stat says one byte less.
  kContentTorn,      // The first open of a file for reading shows the first half.
  kBytesFlipped,     // Large reads have one wrong bit.
  kListingShort,     // The last names are not listed.
  kSymlinkFollowed,  // O_NOFOLLOW is ignored.
  kCaseFolded,       // stat looks for names in lower case.
  kNamesShort,       // Of 143 bytes, as some encrypting file systems have them.
  kUnlinkedGone,     // Reading an unlinked file gives ESTALE.
  kNamesLate,        // A name that was looked for in vain stays unknown for `seconds`.
  kHolesFilled,      // st_blocks counts holes.
  kSlow,             // fsync takes `seconds`.
  kClockBack,        // CLOCK_MONOTONIC goes back now and then.
  kServerClock,      // st_mtim is `seconds` off.
};

struct LyingPlan {
  Lie lie = Lie::kNone;
  std::string part;  // Of the path; "" is every path.
  std::string call;  // "link", "open", "direct" (open with O_DIRECT), "mkdir", "write", "fsync",
                     // "fsync directory", "reserve".
  int error = 0;
  double seconds = 0;
};

// From now on, in this process and in children to come.
void LieWith(const LyingPlan& plan);
inline void TellTheTruth() { LieWith({}); }

}  // namespace perdure
