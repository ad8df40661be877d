#include "launch/job_evidence.h"

#include <utility>

#include "runtime/agent/job_start.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// A double-bit ECC error, which NVML reports apart from Xids.
constexpr int64_t kXidDoubleBit = 48;

}  // namespace

JobEvidence::JobEvidence(Options options, std::function<void(const std::string& line)> warn)
    : options_(std::move(options)), warn_(std::move(warn)), book_(options_.run_directory) {}

void JobEvidence::Write(const EvidenceEntry& entry) {
  const std::string writer = fmt::format("{}-{}", options_.job, options_.node);
  const absl::Status written = book_.Append(writer, entry);
  if (written.ok() || std::exchange(warned_, true)) return;
  warn_("warning: the next jobs will not know it: " + Message(written));
}

void JobEvidence::Put(absl::Time now, Generation generation, NodeId node, EvidenceKind kind,
                      int64_t number, const std::string& detail) {
  if (node >= options_.names.size()) return;
  if (ClassOf(kind, number) == EvidenceClass::kNone) return;
  const int64_t which = kind == EvidenceKind::kDeviceError ? number : 0;
  if (!told_.emplace(node, generation, kind, which).second) return;
  if (const auto working = working_.find(node); working != working_.end()) working->second = now;
  Write({.node = options_.names[node],
         .time = now,
         .kind = kind,
         .number = number,
         .generation = generation,
         .job = std::to_string(JobOf(options_.job)),
         .detail = detail});
}

void JobEvidence::Hear(absl::Time now, Generation generation, NodeId node, EvidenceKind kind,
                       int64_t number) {
  if (kind == EvidenceKind::kNetworkError)
    broken_[generation].insert(node);
  else
    Put(now, generation, node, kind, number, "");
}

void JobEvidence::Form(absl::Time now, Generation generation, const std::vector<NodeId>& members,
                       const std::vector<FailedGeneration>& failures) {
  for (const auto& [ended, failure] : failures) {
    if (!failure.kind.has_value() || !failure.node.has_value()) continue;
    if (*failure.kind != EvidenceKind::kNetworkError) {
      Put(now, ended, *failure.node, *failure.kind, failure.number, "");
      continue;
    }
    broken_[ended].insert(*failure.node);
    for (const NodeId node : broken_[ended])
      Put(now, ended, node, EvidenceKind::kNetworkError, 0, "");
  }
  broken_.erase(broken_.begin(), broken_.lower_bound(generation));
  std::map<NodeId, absl::Time> working;
  for (const NodeId node : members) {
    const auto since = working_.find(node);
    working[node] = since == working_.end() ? now : since->second;
  }
  working_ = std::move(working);
}

void JobEvidence::HearDevice(absl::Time now, Generation generation,
                             const nlohmann::json& evidence) {
  const std::string what = evidence.value("what", "");
  const auto xid = evidence.find("xid");
  if (xid != evidence.end() && xid->is_number_integer())
    Put(now, generation, options_.node, EvidenceKind::kDeviceError, xid->get<int64_t>(), what);
  else if (evidence.value("event", "") == "double-bit ECC")
    Put(now, generation, options_.node, EvidenceKind::kDeviceError, kXidDoubleBit, what);
}

void JobEvidence::End(absl::Time now) {
  if (options_.names.empty() || working_.empty()) return;
  const absl::StatusOr<NodeBook::Contents> contents = book_.Read({});
  if (!contents.ok()) {
    if (!std::exchange(warned_, true)) warn_("warning: " + Message(contents.status()));
    return;
  }
  for (const auto& [node, since] : working_) {
    if (node >= options_.names.size() || !contents->book.Knows(options_.names[node])) continue;
    const int64_t seconds = absl::ToInt64Seconds(now - since);
    if (seconds > 0)
      Write({.node = options_.names[node],
             .time = now,
             .kind = EvidenceKind::kWorked,
             .number = seconds,
             .job = std::to_string(JobOf(options_.job))});
  }
  working_.clear();
}

}  // namespace perdure
