#include "launch/drill_target.h"

#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <utility>

#include "runtime/agent/process.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

using Json = nlohmann::ordered_json;

constexpr DrillKind kKinds[] = {
    {DrillAct::kKillRank, "rank", "a rank's process is killed", 1, false},
    {DrillAct::kKillNode, "node", "a node's agent and ranks are killed", 2, false},
    {DrillAct::kKillAgent, "agent", "the agent of a node that does not coordinate is killed", 2,
     false},
    {DrillAct::kKillCoordinator, "coordinator", "the coordinating agent is killed", 2, true},
    {DrillAct::kStopRank, "hang", "a rank is stopped until it is replaced", 1, false},
    {DrillAct::kSlowRank, "slow", "a rank is a third as fast until the job has named it", 2, true},
    {DrillAct::kCorruptRank, "corrupt", "a bit of a rank's memory is flipped", 1, false},
};

struct Process {
  pid_t pid = 0;
  uint64_t start = 0;
};
struct Seat {
  int64_t rank = -1, local_rank = -1;
  Process process;
};
struct Member {
  int64_t node = -1;
  std::string name;
  Process agent;
  std::vector<Seat> ranks;
};

bool TakeProcess(const Json& json, const char* pid, const char* start, Process& process) {
  const auto number = json.find(pid), since = json.find(start);
  if (number == json.end() || since == json.end() || !number->is_number_unsigned() ||
      !since->is_number_unsigned())
    return false;
  const auto wide = number->get<uint64_t>();
  // 0 and 1 would be everybody, or the machine.
  if (wide < 2 || wide > uint64_t{std::numeric_limits<pid_t>::max()}) return false;
  process = {.pid = static_cast<pid_t>(wide), .start = since->get<uint64_t>()};
  return process.start != 0;
}

std::optional<Member> MemberOf(const Json& json) {
  if (!json.is_object()) return std::nullopt;
  Member member;
  const auto node = json.find("node"), ranks = json.find("ranks");
  if (node == json.end() || !node->is_number_unsigned() || ranks == json.end() ||
      !ranks->is_array() || !TakeProcess(json, "agent_pid", "agent_start", member.agent))
    return std::nullopt;
  member.node = node->get<int64_t>();
  if (const auto name = json.find("name"); name != json.end() && name->is_string())
    member.name = name->get<std::string>();
  for (const Json& rank : *ranks) {
    Seat seat;
    const auto number = rank.find("rank");
    if (!rank.is_object() || number == rank.end() || !number->is_number_unsigned() ||
        !TakeProcess(rank, "pid", "start", seat.process))
      return std::nullopt;
    seat.rank = number->get<int64_t>();
    const auto local_rank = rank.find("local_rank");
    if (local_rank == rank.end() || !local_rank->is_number_unsigned()) return std::nullopt;
    seat.local_rank = local_rank->get<int64_t>();
    member.ranks.push_back(seat);
  }
  return member;
}

// Of nodes with ranks, and the coordinator, which may have none.
absl::StatusOr<std::vector<Member>> EverybodyOf(const Json& status) {
  std::vector<Member> everybody;
  const auto list = status.find("members");
  if (list != status.end() && list->is_array())
    for (const Json& json : *list) {
      std::optional<Member> member = MemberOf(json);
      if (!member.has_value())
        return InvalidArgument(
            "the status of the job does not say which processes its nodes run, and since when: it "
            "is another version's; drill it with the perdure that runs it");
      everybody.push_back(*std::move(member));
    }
  return everybody;
}

absl::StatusOr<std::vector<Member>> MembersOf(const Json& status) {
  ASSIGN_OR_RETURN(std::vector<Member> members, EverybodyOf(status));
  std::erase_if(members, [](const Member& member) { return member.ranks.empty(); });
  if (members.empty()) return FailedPrecondition("no node of the job runs ranks now");
  return members;
}

absl::StatusOr<Member> CoordinatorOf(const Json& status) {
  const auto node = status.find("coordinator");
  if (node == status.end() || !node->is_number_unsigned())
    return FailedPrecondition("the status of the job does not say who coordinates");
  ASSIGN_OR_RETURN(const std::vector<Member> everybody, EverybodyOf(status));
  for (const Member& member : everybody)
    if (member.node == node->get<int64_t>()) return member;
  return FailedPrecondition("node {}, which coordinates, does not say what it runs",
                            node->get<uint64_t>());
}

absl::Status HoldAgent(const Member& member, DrillTarget& target) {
  target.node = member.node;
  ASSIGN_OR_RETURN(HeldProcess agent,
                   HeldProcess::Hold(member.agent.pid, member.agent.start,
                                     fmt::format("node {}'s agent", member.node)));
  target.processes.push_back(std::move(agent));
  return absl::OkStatus();
}

absl::Status HoldRank(const Seat& seat, DrillTarget& target) {
  ASSIGN_OR_RETURN(HeldProcess process, HeldProcess::Hold(seat.process.pid, seat.process.start,
                                                          fmt::format("rank {}", seat.rank)));
  target.processes.push_back(std::move(process));
  return absl::OkStatus();
}

}  // namespace

std::span<const DrillKind> DrillKinds() { return kKinds; }

const DrillKind* FindDrillKind(std::string_view name) {
  const auto* at = std::find_if(std::begin(kKinds), std::end(kKinds),
                                [&](const DrillKind& kind) { return kind.name == name; });
  return at == std::end(kKinds) ? nullptr : at;
}

absl::StatusOr<HeldProcess> HeldProcess::Hold(pid_t pid, uint64_t start, const std::string& what) {
  const auto gone = [&](std::string_view how) {
    return FailedPrecondition("{}, process {}, {}; look at perdure status and try again", what, pid,
                              how);
  };
  UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!fd.open()) {
    if (errno == ESRCH) return gone("is not there any more");
    return ErrnoStatus(errno, fmt::format("hold {}, process {}", what, pid));
  }
  // The one that is held has the number for as long as it lives; so if the start is the right one
  // now, it is the one that is meant.
  struct stat info {};
  if (::stat(fmt::format("/proc/{}", pid).c_str(), &info) != 0 || !ProcessLives(pid, 0))
    return gone("is not there any more");
  if (info.st_uid != ::geteuid())
    return absl::PermissionDeniedError(
        fmt::format("{}, process {}, is user {}'s and you are user {}: only who runs a job may "
                    "drill it",
                    what, pid, info.st_uid, ::geteuid()));
  if (ProcessStart(pid) != start) return gone("is another one than the job's by now");
  return HeldProcess(pid, start, std::move(fd));
}

absl::Status HeldProcess::Signal(int signal) const {
  if (::syscall(SYS_pidfd_send_signal, fd_.get(), signal, nullptr, 0) == 0) return absl::OkStatus();
  if (errno == ESRCH) return NotFound("process {} has ended", pid_);
  return ErrnoStatus(errno, fmt::format("send signal {} to process {}", signal, pid_));
}

bool HeldProcess::Lives() const { return ProcessLives(pid_, start_); }

absl::Status TooFewNodes(const DrillKind& kind, int64_t nodes) {
  return FailedPrecondition(
      "kind {} is for jobs of {} nodes or more, this one runs on {}: start it with more --nodes, "
      "or "
      "take --kind rank or hang",
      kind.name, kind.nodes_min, nodes);
}

namespace {

absl::StatusOr<DrillTarget> Choose(const DrillKind& kind, const Json& status, uint32_t random) {
  ASSIGN_OR_RETURN(const std::vector<Member> members, MembersOf(status));
  if (static_cast<int64_t>(members.size()) < kind.nodes_min)
    return TooFewNodes(kind, static_cast<int64_t>(members.size()));
  DrillTarget target;
  switch (kind.act) {
    case DrillAct::kKillRank:
    case DrillAct::kStopRank:
    case DrillAct::kSlowRank: {
      std::vector<std::pair<int64_t, Seat>> seats;
      for (const Member& member : members)
        for (const Seat& seat : member.ranks) seats.emplace_back(member.node, seat);
      const auto& [node, seat] = seats[random % seats.size()];
      target.node = node;
      target.rank = seat.rank;
      RETURN_IF_ERROR(HoldRank(seat, target));
      return target;
    }
    case DrillAct::kCorruptRank: {
      std::vector<std::pair<const Member*, const Seat*>> seats;
      for (const Member& member : members)
        for (const Seat& seat : member.ranks) seats.emplace_back(&member, &seat);
      const auto& [member, seat] = seats[random % seats.size()];
      target.rank = seat->rank;
      target.local_rank = seat->local_rank;
      RETURN_IF_ERROR(HoldAgent(*member, target));
      return target;
    }
    case DrillAct::kKillNode: {
      const Member& member = members[random % members.size()];
      RETURN_IF_ERROR(HoldAgent(member, target));
      for (const Seat& seat : member.ranks) RETURN_IF_ERROR(HoldRank(seat, target));
      return target;
    }
    case DrillAct::kKillAgent: {
      ASSIGN_OR_RETURN(const Member lead, CoordinatorOf(status));
      std::vector<Member> others;
      std::copy_if(members.begin(), members.end(), std::back_inserter(others),
                   [&](const Member& member) { return member.node != lead.node; });
      RETURN_IF_ERROR(HoldAgent(others[random % others.size()], target));
      return target;
    }
    case DrillAct::kKillCoordinator: {
      ASSIGN_OR_RETURN(const Member lead, CoordinatorOf(status));
      RETURN_IF_ERROR(HoldAgent(lead, target));
      return target;
    }
  }
  return InvalidArgument("kind {} is none", kind.name);
}

}  // namespace

absl::StatusOr<DrillTarget> ChooseTarget(const DrillKind& kind, const Json& status,
                                         uint32_t random) {
  ASSIGN_OR_RETURN(DrillTarget target, Choose(kind, status, random));
  ASSIGN_OR_RETURN(const std::vector<Member> everybody, EverybodyOf(status));
  for (const Member& member : everybody)
    if (member.node == target.node) target.node_name = member.name;
  if (const auto job = status.find("slurm_job"); job != status.end() && job->is_number_unsigned())
    target.slurm_job = job->get<int64_t>();
  return target;
}

}  // namespace perdure
