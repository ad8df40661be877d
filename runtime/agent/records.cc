#include "runtime/agent/records.h"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <map>
#include <optional>
#include <set>

#include "ckpt/json_object.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// Bodies hold text of ours and of the system's (a reason, a layout): what is not UTF-8 is replaced,
// never thrown over.
std::string Dump(const OrderedJson& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/false, OrderedJson::error_handler_t::replace);
}

void CheckpointField(JsonObject& object, const char* key, std::string* name) {
  object.String(key, name);
  if (!IsCheckpointName(*name))
    object.Fail(key, "is not the name of a checkpoint (s000000120.g3.9f3c21aa)");
}

size_t CountDigits(std::string_view text, bool hex) {
  size_t count = 0;
  while (count < text.size() && ((text[count] >= '0' && text[count] <= '9') ||
                                 (hex && text[count] >= 'a' && text[count] <= 'f')))
    ++count;
  return count;
}

constexpr int64_t kAxisMax = 1 << 20, kRanksMax = 1 << 24, kLocalRanksMax = 1024;

// Ranks that sit side by side, as [node, first local rank, how many] after each other.
std::vector<int64_t> SeatRuns(const std::vector<Seat>& seats) {
  std::vector<int64_t> runs;
  for (const Seat& seat : seats) {
    const size_t n = runs.size();
    if (n > 0 && runs[n - 3] == seat.node && runs[n - 2] + runs[n - 1] == seat.local_rank)
      ++runs[n - 1];
    else
      runs.insert(runs.end(), {seat.node, seat.local_rank, 1});
  }
  return runs;
}

absl::StatusOr<std::vector<Seat>> SeatsOf(const std::vector<int64_t>& runs, int64_t ranks) {
  if (runs.size() % 3 != 0)
    return DataLoss("seats has {} numbers, which are no triples", runs.size());
  std::vector<Seat> seats;
  for (size_t i = 0; i < runs.size(); i += 3) {
    const int64_t node = runs[i], first = runs[i + 1], count = runs[i + 2];
    if (node > std::numeric_limits<NodeId>::max() || first >= kLocalRanksMax || count < 1 ||
        count > kLocalRanksMax - first)
      return DataLoss("seats[{}] is node {}, local ranks from {}, {} of them", i / 3, node, first,
                      count);
    if (static_cast<int64_t>(seats.size()) + count > ranks)
      return DataLoss("seats are more than the {} ranks", ranks);
    for (int64_t local = first; local < first + count; ++local)
      seats.push_back({static_cast<NodeId>(node), static_cast<int32_t>(local)});
  }
  if (static_cast<int64_t>(seats.size()) < ranks)
    return DataLoss("seats are {} for {} ranks", seats.size(), ranks);
  std::vector<Seat> sorted = seats;
  std::sort(sorted.begin(), sorted.end());
  if (const auto twice = std::adjacent_find(sorted.begin(), sorted.end()); twice != sorted.end())
    return DataLoss("seats has node {}, local rank {} twice", twice->node, twice->local_rank);
  return seats;
}

// Nodes in order that fail together, as [domain, how many] after each other.
std::vector<int64_t> DomainRuns(const std::vector<uint32_t>& domains) {
  std::vector<int64_t> runs;
  for (const uint32_t domain : domains) {
    if (runs.empty() || runs[runs.size() - 2] != domain) runs.insert(runs.end(), {domain, 0});
    ++runs.back();
  }
  return runs;
}

absl::StatusOr<std::vector<uint32_t>> DomainsOf(const std::vector<int64_t>& runs,
                                                const std::vector<Seat>& seats) {
  if (runs.size() % 2 != 0)
    return DataLoss("domains has {} numbers, which are no pairs", runs.size());
  std::set<NodeId> nodes;
  for (const Seat& seat : seats) nodes.insert(seat.node);
  std::vector<uint32_t> domains;
  for (size_t i = 0; i < runs.size(); i += 2) {
    const int64_t domain = runs[i], count = runs[i + 1];
    const auto left = static_cast<int64_t>(nodes.size() - domains.size());
    if (domain > std::numeric_limits<uint32_t>::max() || count < 1 || count > left)
      return DataLoss("domains[{}] is domain {} of {} nodes; {} are left", i / 2, domain, count,
                      left);
    domains.insert(domains.end(), static_cast<size_t>(count), static_cast<uint32_t>(domain));
  }
  if (!domains.empty() && domains.size() < nodes.size())
    return DataLoss("domains are of {} nodes, seats of {}", domains.size(), nodes.size());
  return domains;
}

}  // namespace

std::string SerializeLead(const LeadRecord& record) { return Dump({{"address", record.address}}); }

absl::StatusOr<LeadRecord> ParseLead(std::string_view body) {
  ASSIGN_OR_RETURN(const Json json, ParseJsonObject(body, "body"));
  JsonObject object(json, "");
  LeadRecord record;
  object.String("address", &record.address);
  RETURN_IF_ERROR(object.Done());
  return record;
}

std::string SerializeStart(const StartRecord& record) {
  const Failure& failure = record.failure;
  OrderedJson json = {{"tensor", record.shape.tensor},
                      {"pipeline", record.shape.pipeline},
                      {"data", record.shape.data},
                      {"seats", SeatRuns(record.seats)},
                      {"domains", DomainRuns(record.domains)},
                      {"layout", record.layout},
                      {"step", record.step},
                      {"from_checkpoint", record.from_checkpoint},
                      {"failure", failure.kind.has_value() ? NameOf(*failure.kind) : ""},
                      {"failure_number", failure.number},
                      {"failure_step", failure.step},
                      {"failure_node", failure.node.has_value() ? int64_t{*failure.node} : -1}};
  if (!record.gaps.empty()) json["gaps"] = NumbersOf(record.gaps);
  return Dump(json);
}

namespace {

void ReadFailure(JsonObject& object, Failure* failure) {
  std::string kind;
  int64_t node = -1;
  object.String("failure", &kind);
  object.Int("failure_number", &failure->number, std::numeric_limits<int64_t>::min());
  object.Int("failure_step", &failure->step);
  object.Int("failure_node", &node, -1, std::numeric_limits<NodeId>::max());
  failure->kind = KindOf(kind);
  if (!kind.empty() && !failure->kind.has_value())
    object.Fail("failure", fmt::format("is '{}', which is no kind of evidence", kind));
  if (node >= 0) failure->node = static_cast<NodeId>(node);
}

}  // namespace

absl::StatusOr<StartRecord> ParseStart(std::string_view body) {
  ASSIGN_OR_RETURN(const Json json, ParseJsonObject(body, "body"));
  JsonObject object(json, "");
  StartRecord record;
  int64_t tensor = 1, pipeline = 1, data = 0;
  object.Int("tensor", &tensor, 1, kAxisMax);
  object.Int("pipeline", &pipeline, 1, kAxisMax);
  object.Int("data", &data, 0, kAxisMax);
  std::vector<int64_t> runs, domains, gaps;
  object.Ints("seats", &runs);
  object.Ints("domains", &domains);
  object.String("layout", &record.layout);
  object.Int("step", &record.step);
  object.Bool("from_checkpoint", &record.from_checkpoint);
  ReadFailure(object, &record.failure);
  if (object.Has("gaps")) {
    object.Ints("gaps", &gaps);
    if (gaps.empty()) object.Fail("gaps", "is there without any");
  }
  if (tensor * pipeline * data > kRanksMax)
    object.Fail("data",
                fmt::format("makes {} ranks; {} are allowed", tensor * pipeline * data, kRanksMax));
  RETURN_IF_ERROR(object.Done());
  record.shape = {.tensor = static_cast<int32_t>(tensor),
                  .pipeline = static_cast<int32_t>(pipeline),
                  .data = static_cast<int32_t>(data)};
  ASSIGN_OR_RETURN(record.seats, SeatsOf(runs, record.shape.ranks()));
  ASSIGN_OR_RETURN(record.domains, DomainsOf(domains, record.seats));
  ASSIGN_OR_RETURN(record.gaps, GapsOf(gaps));
  return record;
}

std::string SerializeCommit(const CommitRecord& record) {
  return Dump({{"checkpoint", record.checkpoint},
               {"step", record.step},
               {"samples", record.samples},
               {"manifest", record.manifest.Hex()},
               {"certificate", record.certificate.Hex()},
               {"bytes", record.bytes},
               {"files", record.files}});
}

absl::StatusOr<CommitRecord> ParseCommit(std::string_view body) {
  ASSIGN_OR_RETURN(const Json json, ParseJsonObject(body, "body"));
  JsonObject object(json, "");
  CommitRecord record;
  CheckpointField(object, "checkpoint", &record.checkpoint);
  object.Int("step", &record.step);
  object.Int("samples", &record.samples);
  object.Hex("manifest", &record.manifest);
  object.Hex("certificate", &record.certificate);
  object.Unsigned("bytes", &record.bytes);
  object.Int("files", &record.files);
  RETURN_IF_ERROR(object.Done());
  return record;
}

std::string SerializeAttempt(const AttemptRecord& record) { return Dump({{"name", record.name}}); }

absl::StatusOr<AttemptRecord> ParseAttempt(std::string_view body) {
  ASSIGN_OR_RETURN(const Json json, ParseJsonObject(body, "body"));
  JsonObject object(json, "");
  AttemptRecord record;
  CheckpointField(object, "name", &record.name);
  RETURN_IF_ERROR(object.Done());
  return record;
}

std::string SerializeVerified(const VerifiedRecord& record) {
  return Dump({{"name", record.name}, {"kind", record.kind}});
}

absl::StatusOr<VerifiedRecord> ParseVerified(std::string_view body) {
  ASSIGN_OR_RETURN(const Json json, ParseJsonObject(body, "body"));
  JsonObject object(json, "");
  VerifiedRecord record;
  CheckpointField(object, "name", &record.name);
  object.String("kind", &record.kind);
  if (record.kind != "read" && record.kind != "ran")
    object.Fail("kind", fmt::format("is '{}'; read or ran expected", record.kind));
  RETURN_IF_ERROR(object.Done());
  return record;
}

std::string SerializeRetire(const RetireRecord& record) { return Dump({{"names", record.names}}); }

absl::StatusOr<RetireRecord> ParseRetire(std::string_view body) {
  ASSIGN_OR_RETURN(const Json json, ParseJsonObject(body, "body"));
  JsonObject object(json, "");
  RetireRecord record;
  object.Strings("names", &record.names);
  for (const std::string& name : record.names)
    if (!IsCheckpointName(name)) object.Fail("names", fmt::format("has '{}'", name));
  RETURN_IF_ERROR(object.Done());
  return record;
}

std::string SerializeEnd(const EndRecord& record) {
  return Dump({{"reason", record.reason}, {"exit_code", record.exit_code}, {"step", record.step}});
}

absl::StatusOr<EndRecord> ParseEnd(std::string_view body) {
  ASSIGN_OR_RETURN(const Json json, ParseJsonObject(body, "body"));
  JsonObject object(json, "");
  EndRecord record;
  object.String("reason", &record.reason);
  object.Int("exit_code", &record.exit_code, 0, 255);
  object.Int("step", &record.step, -1);
  RETURN_IF_ERROR(object.Done());
  return record;
}

absl::Status CheckBody(RecordType type, std::string_view body) {
  switch (type) {
    case RecordType::kLead:
      return ParseLead(body).status();
    case RecordType::kStart:
      return ParseStart(body).status();
    case RecordType::kCommit:
      return ParseCommit(body).status();
    case RecordType::kAttempt:
      return ParseAttempt(body).status();
    case RecordType::kVerified:
      return ParseVerified(body).status();
    case RecordType::kRetire:
      return ParseRetire(body).status();
    case RecordType::kEnd:
      return ParseEnd(body).status();
  }
  return DataLoss("type {} is unknown", static_cast<uint32_t>(type));
}

bool IsCheckpointName(std::string_view name) {
  if (!name.starts_with('s')) return false;
  name.remove_prefix(1);
  const size_t step = CountDigits(name, false);
  if (step < 9 || step > 19 || !name.substr(step).starts_with(".g")) return false;
  name.remove_prefix(step + 2);
  const size_t generation = CountDigits(name, false);
  if (generation < 1 || generation > 20 || !name.substr(generation).starts_with('.')) return false;
  name.remove_prefix(generation + 1);
  return name.size() == 8 && CountDigits(name, true) == 8;
}

namespace {

// What the records behind the COMMITs say, by checkpoint.
struct Sayings {
  struct Attempt {
    uint64_t generation = 0, job = 0;
  };
  std::set<std::string> verified, retired;
  std::map<std::string, std::vector<Attempt>> attempts;
  std::optional<Attempt> newest;
  std::set<uint64_t> clean;  // Generations that came to what they should.
};

// RunLog holds records with good bodies only.
template <typename T>
T Body(absl::StatusOr<T> parsed) {
  PERDURE_CHECK(parsed.ok());
  return *std::move(parsed);
}

Sayings Gather(const RunLog& log) {
  Sayings said;
  for (const Record& record : log.records()) {
    if (record.type == RecordType::kVerified) {
      const VerifiedRecord body = Body(ParseVerified(record.body));
      if (body.kind == "read") said.verified.insert(body.name);
      if (body.kind == "ran") said.attempts.erase(body.name);
    } else if (record.type == RecordType::kRetire) {
      const RetireRecord body = Body(ParseRetire(record.body));
      said.retired.insert(body.names.begin(), body.names.end());
    } else if (record.type == RecordType::kAttempt) {
      said.newest = Sayings::Attempt{record.generation, record.author.at.job};
      said.attempts[Body(ParseAttempt(record.body)).name].push_back(*said.newest);
    } else if (record.type == RecordType::kEnd) {
      const EndRecord body = Body(ParseEnd(record.body));
      if (body.exit_code != 0 && body.exit_code != 75) continue;
      said.clean.insert(record.generation);
      // Generations of one job that followed went on from memory. Jobs without agents (0) have one.
      const uint64_t job = record.author.at.job;
      if (job != 0 && said.newest.has_value() && said.newest->job == job)
        said.clean.insert(said.newest->generation);
    }
  }
  return said;
}

}  // namespace

Gaps GapsOfRun(const RunLog& log) {
  for (auto record = log.records().rbegin(); record != log.records().rend(); ++record)
    if (record->type == RecordType::kStart) return Body(ParseStart(record->body)).gaps;
  return {};
}

std::vector<CheckpointEntry> ListCheckpoints(const RunLog& log, const std::string& run_directory) {
  const Sayings said = Gather(log);
  const Gaps gaps_now = GapsOfRun(log);
  Gaps gaps;
  const std::filesystem::path run(run_directory);
  std::vector<CheckpointEntry> entries;
  for (const Record& record : log.records()) {
    // A COMMIT is of the generation of the START before it.
    if (record.type == RecordType::kStart) gaps = Body(ParseStart(record.body)).gaps;
    if (record.type != RecordType::kCommit) continue;
    CheckpointEntry entry{.commit = Body(ParseCommit(record.body)),
                          .generation = record.generation};
    entry.gaps = GapsBehind(gaps, entry.commit.step);
    entry.left = entry.gaps != GapsBehind(gaps_now, entry.commit.step);
    const std::string& name = entry.commit.checkpoint;
    entry.verified = said.verified.contains(name);
    entry.retired = said.retired.contains(name);
    entry.path = (run / "ckpt" / name).string();
    std::error_code ignored;  // A directory that cannot be seen is not there.
    entry.quarantined =
        !entry.retired && std::filesystem::exists(run / "quarantine" / name, ignored);
    entry.gone = !entry.retired && !entry.quarantined &&
                 !std::filesystem::exists(entry.path, ignored) && !ignored;
    if (const auto attempts = said.attempts.find(name); attempts != said.attempts.end())
      for (const Sayings::Attempt& attempt : attempts->second)
        if (!said.clean.contains(attempt.generation)) entry.failed_jobs.push_back(attempt.job);
    entry.failed_attempts = std::ssize(entry.failed_jobs);
    entries.push_back(std::move(entry));
  }
  std::reverse(entries.begin(), entries.end());
  return entries;
}

}  // namespace perdure
