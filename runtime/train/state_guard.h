// Guards the state that a rank keeps from one update to the next: behind an update it has the sums
// (kernels/word_sum.h) of every part of every kept atom, before the next one it makes them again.
// Nothing may change the state in between, so what differs is memory that has lost a bit.
//
// Where device memory is the host's, both are done piece by piece within the update, while the
// piece is in the cache, and cost next to no memory bandwidth; a device does them in one go each.
//
// The trainer's thread; enqueues like the ops. SumsOf is for whoever copies the state, too.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "ckpt/checkpoint.h"
#include "kernels/ops.h"
#include "runtime/base/atoms.h"
#include "runtime/train/corruption.h"
#include "runtime/train/sum_table.h"

namespace perdure {

class StateGuard {
 public:
  // `kept`: pointers into device memory, fp32. Table and ops outlive it.
  StateGuard(Ops* ops, const AtomTable* table, std::vector<AtomState> kept);

  // The state is what it should be now.
  void Record();
  // Makes the sums again, all of them; compared by Judge once the device was waited for.
  void Look();
  // Of `position` in `kept`, by part: as recorded; valid once the device, or the download behind,
  // was waited for, and until the next update.
  const uint64_t* SumsOf(size_t position) const;
  // The same, once the device was waited for.
  const uint64_t* SumsNow(size_t position) const;
  std::vector<AtomState>& kept() { return kept_; }

  // An update piece by piece, in host memory: each piece is looked at, then updated by the caller,
  // then recorded. Pieces cover every kept atom once.
  void BeginPieces();
  void LookAt(size_t position, int64_t begin, int64_t count);
  void RecordAt(size_t position, int64_t begin, int64_t count);
  // What was looked at is compared, what was recorded holds from now on.
  Verdict EndPieces();

  Verdict Judge() const;

 private:
  void AddAll(SumTable& sums);
  void AddAt(SumTable& sums, size_t position, int64_t begin, int64_t count);

  Ops* ops_;
  const AtomTable* table_;
  std::vector<AtomState> kept_;
  // By position, then part.
  SumTable recorded_, found_, next_;
  SumTable behind_;  // As recorded_: its copy on the host comes with the downloads behind.
  std::array<const float*, kStatePartCount> bases_{};       // What the runs are counted from,
  std::array<std::vector<WordRun>, kStatePartCount> runs_;  // all of a part.
};

}  // namespace perdure
