#include "runtime/agent/file_system_checks.h"

#include "runtime/base/status.h"

namespace perdure {
namespace {

using Json = nlohmann::json;

ProbeCheck Made(std::string seen, ProbeOutcome outcome, std::string meaning, std::string advice) {
  ProbeCheck check;
  check.outcome = outcome;
  check.seen = std::move(seen);
  check.meaning = std::move(meaning);
  check.advice = std::move(advice);
  return check;
}

constexpr ProbeEntry kLocalChecks[] = {
    {"file_system", CheckFileSystem, {}},
    {"room", CheckRoom, {}},
    {"owner", CheckOwner, {"room"}},
    {"exclusive_create", CheckExclusiveCreate, {"room"}},
    {"link", CheckLink, {"room"}},
    {"link_race", CheckLinkRace, {"link"}},
    {"rename", CheckRename, {"room"}},
    {"listing", CheckListing, {"room"}},
    {"symlink", CheckSymlink, {"room"}},
    {"names", CheckNames, {"room"}},
    {"read_back", CheckReadBack, {"room"}},
    {"unlinked_open", CheckUnlinkedOpen, {"room"}},
    {"sync", CheckSync, {"room"}},
    {"record_time", CheckRecordTime, {"link", "sync"}},
    {"reserve", CheckReserve, {"room"}},
    {"sparse", CheckSparse, {"room"}},
    {"direct_io", CheckDirectIo, {"room"}},
    {"bandwidth", CheckBandwidth, {"room"}},
    {"monotonic_clock", CheckMonotonicClock, {}},
    {"wall_clock", CheckWallClock, {"room"}},
    {"io_uring", CheckIoUring, {}},
};

}  // namespace

ProbeCheck Good(std::string seen) { return Made(std::move(seen), ProbeOutcome::kOk, "", ""); }
ProbeCheck Warn(std::string seen, std::string meaning, std::string advice) {
  return Made(std::move(seen), ProbeOutcome::kWarning, std::move(meaning), std::move(advice));
}
ProbeCheck Refuse(std::string seen, std::string meaning, std::string advice) {
  return Made(std::move(seen), ProbeOutcome::kRefused, std::move(meaning), std::move(advice));
}
ProbeCheck Skip(std::string why) { return Made(std::move(why), ProbeOutcome::kNotTested, "", ""); }

ProbeCheck RefuseFor(const absl::Status& status) {
  const std::string seen = Message(status);
  switch (status.code()) {
    case absl::StatusCode::kResourceExhausted:
      return Refuse(seen, "nothing more can be written here",
                    "make room, or ask for a larger quota, of bytes or of files");
    case absl::StatusCode::kPermissionDenied:
      return Refuse(seen, "you may not do here what a run does all the time",
                    "a directory of your own; another one, if this is yours");
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDataLoss:
      return Refuse(seen, "the file system loses data, or says that it does",
                    "show this, and the node's kernel log, to whoever runs it");
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kAlreadyExists:
      return Refuse(seen, "what several nodes see of it is not known",
                    "start all tasks at once, on one shared directory; --wait for slow starts");
    default:
      return Refuse(seen, "a run needs this call, and it failed",
                    "another directory; show this to whoever runs the file system");
  }
}

Json ToJson(const ProbeCheck& check) {
  return {{"name", check.name},     {"outcome", static_cast<int>(check.outcome)},
          {"seen", check.seen},     {"meaning", check.meaning},
          {"advice", check.advice}, {"numbers", check.numbers}};
}

ProbeCheck CheckFromJson(const Json& json) {
  ProbeCheck check;
  try {  // The library says so that something else stands there.
    check.name = json.at("name").get<std::string>();
    check.seen = json.at("seen").get<std::string>();
    check.meaning = json.at("meaning").get<std::string>();
    check.advice = json.at("advice").get<std::string>();
    check.numbers = json.at("numbers").get<std::map<std::string, double>>();
    check.outcome = static_cast<ProbeOutcome>(json.at("outcome").get<int>());
  } catch (const Json::exception& error) {
    return Refuse(error.what(), "what another task said reads otherwise", "one build everywhere");
  }
  return check;
}

std::span<const ProbeEntry> LocalChecks() { return kLocalChecks; }

}  // namespace perdure
