// The single checks of ProbeFileSystem, and what they are made of. Each is called in the probing
// process, one after the other, in a directory of its own task.
//
// A check that gets an error it cannot judge returns it; that is a refusal, too.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "runtime/agent/file_system_probe.h"

namespace perdure {

// Where a check works.
struct ProbeSite {
  std::string run_directory;
  std::string directory;        // Of this task; has tmp/ and log/, as a run has.
  uint64_t bytes = 0;           // What a check may occupy.
  std::function<void()> alive;  // To be called while something takes long but goes on.

  std::string Tmp(std::string_view name) const { return directory + "/tmp/" + std::string(name); }
  std::string Log(std::string_view name) const { return directory + "/log/" + std::string(name); }
};

ProbeCheck Good(std::string seen);
ProbeCheck Warn(std::string seen, std::string meaning, std::string advice);
ProbeCheck Refuse(std::string seen, std::string meaning, std::string advice);
ProbeCheck Skip(std::string why);
// What an unexpected error amounts to.
ProbeCheck RefuseFor(const absl::Status& status);

nlohmann::json ToJson(const ProbeCheck& check);
ProbeCheck CheckFromJson(const nlohmann::json& json);

struct ProbeEntry {
  const char* name;
  absl::StatusOr<ProbeCheck> (*run)(const ProbeSite&);
  std::array<const char*, 2> needs;  // Checks without which this one cannot be made, or nullptr.
};
// In order; not those across tasks.
std::span<const ProbeEntry> LocalChecks();

// Names: file_system_checks_names.cc.
absl::StatusOr<ProbeCheck> CheckOwner(const ProbeSite& site);
absl::StatusOr<ProbeCheck> CheckExclusiveCreate(const ProbeSite& site);
absl::StatusOr<ProbeCheck> CheckLink(const ProbeSite& site);
absl::StatusOr<ProbeCheck> CheckLinkRace(const ProbeSite& site);
absl::StatusOr<ProbeCheck> CheckRename(const ProbeSite& site);
absl::StatusOr<ProbeCheck> CheckListing(const ProbeSite& site);
absl::StatusOr<ProbeCheck> CheckSymlink(const ProbeSite& site);
absl::StatusOr<ProbeCheck> CheckNames(const ProbeSite& site);
// Bytes: file_system_checks_data.cc.
absl::StatusOr<ProbeCheck> CheckSync(const ProbeSite& site);
absl::StatusOr<ProbeCheck> CheckRecordTime(const ProbeSite& site);
absl::StatusOr<ProbeCheck> CheckReadBack(const ProbeSite& site);
absl::StatusOr<ProbeCheck> CheckUnlinkedOpen(const ProbeSite& site);
absl::StatusOr<ProbeCheck> CheckReserve(const ProbeSite& site);
absl::StatusOr<ProbeCheck> CheckSparse(const ProbeSite& site);
absl::StatusOr<ProbeCheck> CheckDirectIo(const ProbeSite& site);
absl::StatusOr<ProbeCheck> CheckBandwidth(const ProbeSite& site);
// Around it: file_system_checks_machine.cc.
absl::StatusOr<ProbeCheck> CheckFileSystem(const ProbeSite& site);
absl::StatusOr<ProbeCheck> CheckRoom(const ProbeSite& site);
absl::StatusOr<ProbeCheck> CheckMonotonicClock(const ProbeSite& site);
absl::StatusOr<ProbeCheck> CheckWallClock(const ProbeSite& site);
absl::StatusOr<ProbeCheck> CheckIoUring(const ProbeSite& site);
// What the mount of `path` (no links, no dots) means for a run, by a text like
// /proc/self/mountinfo.
ProbeCheck JudgeMount(const std::string& path, const std::string& mountinfo);
// Of `bytes_max`, what may be used in `directory`: at most 1 % of what is left there.
uint64_t ProbeBytes(const std::string& directory, uint64_t bytes_max);

// ---- What they share ----

// A new file with these bytes, as the run log writes one: exclusively, mode 0600.
absl::Status WriteProbeFile(const std::string& path, std::string_view bytes, bool sync);

// One record of a race for numbered slots, `racer`'s; all of them have one size.
std::string RaceRecord(int slot, int racer);
struct RaceView {
  bool won = false;
  int winner = -1;  // By what stands there; -1: no whole record of this slot.
};
// Links a record of `racer` to the slot's name in `log` once `ready` returns, and looks what stands
// there.
absl::StatusOr<RaceView> RaceForSlot(const std::string& tmp, const std::string& log, int slot,
                                     int racer, int racers, const std::function<void()>& ready);
// What is wrong with one slot, from what every racer saw of it; nothing: one won, all agree.
std::optional<std::string> JudgeSlot(int slot, std::span<const RaceView> views);

struct Spread {
  double p50 = 0, max = 0;
};
Spread SpreadOf(std::vector<double> values);  // Zeros for none.
double MonotonicSeconds();

}  // namespace perdure
