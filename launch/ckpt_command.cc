#include "launch/ckpt_command.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "ckpt/checkpoint.h"
#include "ckpt/stats.h"
#include "launch/byte_count.h"
#include "launch/ckpt_target.h"
#include "launch/exchange_command.h"
#include "launch/reshard_command.h"
#include "runtime/agent/records.h"
#include "runtime/agent/retention.h"
#include "runtime/agent/run_log.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr int kGood = kCkptGood, kBad = kCkptBad;

struct Options {
  std::vector<std::string> paths;
  std::string tensor;
  bool json = false, all = false, verify = false, stats = false;
};

absl::StatusOr<Manifest> VerifyTarget(const CheckpointTarget& target) {
  RETURN_IF_ERROR(CheckCommitted(target));
  ASSIGN_OR_RETURN(Manifest manifest, ManifestOf(target));
  ProgressLine progress("verify " + target.path);
  RETURN_IF_ERROR(VerifyCheckpoint(target.path, manifest, progress.callback()));
  return manifest;
}

// --- list ---------------------------------------------------------------------------------------

Json EntryJson(const CheckpointEntry& entry, bool pinned) {
  return {{"step", entry.commit.step},
          {"path", entry.path},
          {"name", entry.commit.checkpoint},
          {"certificate", entry.commit.certificate.Hex()},
          {"verified", entry.verified},
          {"retired", entry.retired},
          {"quarantined", entry.quarantined},
          {"gone", entry.gone},
          {"left", entry.left},
          {"failed_attempts", entry.failed_attempts},
          {"pinned", pinned},
          {"generation", entry.generation},
          {"samples", entry.commit.samples},
          {"bytes", entry.commit.bytes},
          {"files", entry.commit.files},
          {"manifest", entry.commit.manifest.Hex()}};
}

// What a person should know first.
std::string StateOf(const CheckpointEntry& entry, bool pinned) {
  std::string state = entry.retired       ? "retired"
                      : entry.quarantined ? "quarantined"
                      : entry.gone        ? "gone"
                      : entry.left        ? "left"
                      : entry.verified    ? "yes"
                                          : "not yet";
  if (entry.failed_attempts > 0) state += fmt::format(", failed {}x", entry.failed_attempts);
  return pinned ? state + ", pinned" : state;
}

void PrintEntries(const std::vector<CheckpointEntry>& entries, const std::set<std::string>& pins) {
  size_t width = 8;
  for (const CheckpointEntry& entry : entries)
    width = std::max(width, StateOf(entry, pins.contains(entry.commit.checkpoint)).size());
  fmt::print("{:>10}  {:>10}  {:>12}  {:>10}  {:>5}  {:{}}  {:32}  {}\n", "step", "generation",
             "samples", "size", "files", "verified", width, "certificate", "path");
  for (const CheckpointEntry& entry : entries)
    fmt::print("{:>10}  {:>10}  {:>12}  {:>10}  {:>5}  {:{}}  {:32}  {}\n", entry.commit.step,
               entry.generation, entry.commit.samples, HumanBytes(entry.commit.bytes),
               entry.commit.files, StateOf(entry, pins.contains(entry.commit.checkpoint)), width,
               entry.commit.certificate.Hex(), entry.path);
}

int List(const Options& options) {
  auto entries = CheckpointsOfRun(AbsolutePath(options.paths.front()));
  if (!entries.ok()) return FailCkpt(entries.status());
  const auto pinned = PinnedCheckpoints(AbsolutePath(options.paths.front()));
  if (!pinned.ok()) return FailCkpt(pinned.status());
  const std::set<std::string> pins(pinned->begin(), pinned->end());
  if (!options.all) std::erase_if(*entries, [](const auto& entry) { return entry.retired; });
  std::reverse(entries->begin(), entries->end());
  int exit_code = kGood;
  if (options.verify)
    for (CheckpointEntry& entry : *entries) {
      if (entry.retired || entry.quarantined) continue;
      const absl::Status status = VerifyTarget({entry.path, true, entry}).status();
      entry.verified = status.ok();
      if (status.ok()) continue;
      fmt::print(stderr, "perdure ckpt: {}\n", Message(status));
      exit_code = kBad;
    }
  if (!options.json) {
    PrintEntries(*entries, pins);
    return exit_code;
  }
  Json list = Json::array();
  for (const CheckpointEntry& entry : *entries)
    list.push_back(EntryJson(entry, pins.contains(entry.commit.checkpoint)));
  fmt::print("{}\n", list.dump(2));
  return exit_code;
}

// --- inspect ------------------------------------------------------------------------------------

struct Inspection {
  CheckpointTarget target;
  Manifest manifest;
  AtomTable table;
  std::vector<Digest> atom_digests;
  std::vector<std::string> atom_files;
  std::vector<Digest> tensor_digests;
};

absl::StatusOr<Inspection> OpenInspection(const std::string& path) {
  ASSIGN_OR_RETURN(CheckpointTarget target, ResolveNewestCheckpoint(path));
  ASSIGN_OR_RETURN(Manifest manifest, ManifestOf(target));
  AtomTable table(manifest.tensors, manifest.atom_elements);
  std::vector<Digest> digests(table.atoms().size());
  std::vector<std::string> files(table.atoms().size());
  for (const PartReport& part : manifest.parts)
    for (size_t i = 0; i < part.atoms.size(); ++i) {
      digests[static_cast<size_t>(part.atoms[i])] = part.atom_digests[i];
      files[static_cast<size_t>(part.atoms[i])] = part.file;
    }
  std::vector<Digest> tensor_digests = TensorDigests(table, digests);
  return Inspection{std::move(target),  std::move(manifest), std::move(table),
                    std::move(digests), std::move(files),    std::move(tensor_digests)};
}

Json HeadJson(const Inspection& inspection) {
  const Manifest& manifest = inspection.manifest;
  Json parts = Json::array();
  for (const PartReport& part : manifest.parts)
    parts.push_back({{"file", part.file},
                     {"bytes", part.bytes},
                     {"atoms", part.atoms.size()},
                     {"writers", part.runs.size()}});
  return {{"path", inspection.target.path},
          {"committed", inspection.target.entry.has_value()},
          {"verified", inspection.target.entry && inspection.target.entry->verified},
          {"run_id", manifest.run_id},
          {"generation", manifest.generation},
          {"step", manifest.step},
          {"phase", manifest.phase},
          {"phase_name", manifest.phase_name},
          {"samples", manifest.samples},
          {"tokens", manifest.tokens},
          {"layout", manifest.layout},
          {"created", manifest.created},
          {"certificate", manifest.certificate.Hex()},
          {"sample_chain", manifest.trail.sample_chain.Hex()},
          {"gaps", NumbersOf(manifest.gaps)},
          {"parameters", inspection.table.parameters()},
          {"atom_elements", manifest.atom_elements},
          {"atoms", inspection.table.atoms().size()},
          {"parts", std::move(parts)}};
}

Json AtomsJson(const Inspection& inspection, const IndexRange& atoms) {
  Json list = Json::array();
  for (int64_t index = atoms.first; index < atoms.last; ++index) {
    const size_t i = static_cast<size_t>(index);
    const Atom& atom = inspection.table.atoms()[i];
    list.push_back({{"atom", index},
                    {"slice", atom.slice},
                    {"begin", atom.begin},
                    {"count", atom.count},
                    {"digest", inspection.atom_digests[i].Hex()},
                    {"file", inspection.atom_files[i]}});
  }
  return list;
}

absl::StatusOr<Json> StatsJson(const Inspection& inspection, int64_t tensor) {
  ASSIGN_OR_RETURN(const auto stats, TensorStats(inspection.target.path, inspection.manifest,
                                                 inspection.table, tensor));
  Json json;
  for (size_t i = 0; i < stats.size(); ++i)
    json[std::string(kStateParts[i])] = {{"min", stats[i].min},
                                         {"max", stats[i].max},
                                         {"mean", stats[i].mean},
                                         {"rms", stats[i].rms},
                                         {"not_finite", stats[i].not_finite}};
  return json;
}

absl::StatusOr<Json> TensorJson(const Inspection& inspection, int64_t index,
                                const Options& options) {
  constexpr std::array<const char*, 3> kAxisNames = {"none", "rows", "cols"};
  const TensorSpec& tensor = inspection.table.tensors()[static_cast<size_t>(index)];
  const IndexRange atoms = inspection.table.TensorAtoms(index);
  Json json = {{"name", tensor.name},
               {"rows", tensor.rows},
               {"cols", tensor.cols},
               {"axis", kAxisNames[static_cast<size_t>(tensor.axis)]},
               {"slices", tensor.slices},
               {"atoms", atoms.size()},
               {"digest", inspection.tensor_digests[static_cast<size_t>(index)].Hex()}};
  if (!options.tensor.empty()) json["atom_list"] = AtomsJson(inspection, atoms);
  if (options.stats) {
    ASSIGN_OR_RETURN(json["stats"], StatsJson(inspection, index));
  }
  return json;
}

void PrintInspection(const Json& json) {
  for (const auto& item : json.items())
    if (!item.value().is_array())
      fmt::print("{:14} {}\n", item.key(),
                 item.value().is_string() ? item.value().get<std::string>() : item.value().dump());
  for (const Json& part : json["parts"])
    fmt::print("{:14} {}, {} atoms of {} writers, {}\n", "part", part["file"].get<std::string>(),
               part["atoms"].get<int64_t>(), part["writers"].get<int64_t>(),
               HumanBytes(part["bytes"].get<uint64_t>()));
  fmt::print("\n{:48}  {:>16}  {:>9}  {:>6}  {}\n", "tensor", "shape", "slices", "atoms", "digest");
  for (const Json& tensor : json["tensors"]) {
    fmt::print("{:48}  {:>16}  {:>4} {:4}  {:>6}  {}\n", tensor["name"].get<std::string>(),
               fmt::format("{} x {}", tensor["rows"].get<int64_t>(), tensor["cols"].get<int64_t>()),
               tensor["slices"].get<int64_t>(), tensor["axis"].get<std::string>(),
               tensor["atoms"].get<int64_t>(), tensor["digest"].get<std::string>());
    if (tensor.contains("stats"))
      for (const auto& part : tensor["stats"].items())
        fmt::print("    {:12} {}\n", part.key(), part.value().dump());
    if (tensor.contains("atom_list"))
      for (const Json& atom : tensor["atom_list"])
        fmt::print("    atom {:<8} slice {:<3} elements {} to {}  {}  {}\n",
                   atom["atom"].get<int64_t>(), atom["slice"].get<int64_t>(),
                   atom["begin"].get<int64_t>(),
                   atom["begin"].get<int64_t>() + atom["count"].get<int64_t>() - 1,
                   atom["digest"].get<std::string>(), atom["file"].get<std::string>());
  }
}

absl::StatusOr<Json> InspectJson(const Options& options) {
  ASSIGN_OR_RETURN(const Inspection inspection, OpenInspection(options.paths.front()));
  IndexRange tensors{0, static_cast<int64_t>(inspection.table.tensors().size())};
  if (!options.tensor.empty()) {
    const int64_t found = inspection.table.FindTensor(options.tensor);
    if (found < 0)
      return InvalidArgument("{} has no tensor {}: without --tensor all are listed",
                             inspection.target.path, options.tensor);
    tensors = {found, found + 1};
  }
  Json json = HeadJson(inspection);
  Json list = Json::array();
  ProgressLine progress("read " + inspection.target.path);
  for (int64_t t = tensors.first; t < tensors.last; ++t) {
    ASSIGN_OR_RETURN(Json tensor, TensorJson(inspection, t, options));
    list.push_back(std::move(tensor));
    progress.callback()(static_cast<uint64_t>(t - tensors.first),
                        static_cast<uint64_t>(tensors.size()));
  }
  json["tensors"] = std::move(list);
  return json;
}

int Inspect(const Options& options) {
  const absl::StatusOr<Json> json = InspectJson(options);
  if (!json.ok()) return FailCkpt(json.status());
  if (options.json)
    fmt::print("{}\n", json->dump(2));
  else
    PrintInspection(*json);
  return kGood;
}

// --- verify, diff -------------------------------------------------------------------------------

Json VerdictJson(const CheckpointTarget& target, const absl::StatusOr<Manifest>& verdict) {
  Json json = {{"path", target.path},
               {"ok", verdict.ok()},
               {"committed", target.entry.has_value()},
               {"error", verdict.ok() ? "" : Message(verdict.status())}};
  if (!verdict.ok()) return json;
  json["step"] = verdict->step;
  json["certificate"] = verdict->certificate.Hex();
  return json;
}

void PrintVerdict(const CheckpointTarget& target, const absl::StatusOr<Manifest>& verdict) {
  if (!verdict.ok()) {
    fmt::print("bad   {}: {}\n", target.path, Message(verdict.status()));
    return;
  }
  fmt::print("good  {}: step {}, certificate {}{}\n", target.path, verdict->step,
             verdict->certificate.Hex(),
             target.in_run ? "" : " (outside of a run: compared with its own manifest only)");
}

int Verify(const Options& options) {
  std::vector<CheckpointTarget> targets;
  for (const std::string& path : options.paths) {
    const auto found = ResolveCheckpoints(path);
    if (!found.ok()) return FailCkpt(found.status());
    targets.insert(targets.end(), found->begin(), found->end());
  }
  Json list = Json::array();
  int exit_code = kGood;
  for (const CheckpointTarget& target : targets) {
    const absl::StatusOr<Manifest> verdict = VerifyTarget(target);
    if (!verdict.ok()) exit_code = kBad;
    if (options.json)
      list.push_back(VerdictJson(target, verdict));
    else
      PrintVerdict(target, verdict);
  }
  if (options.json) fmt::print("{}\n", list.dump(2));
  if (targets.empty() && !options.json) fmt::print("no checkpoint yet\n");
  return exit_code;
}

absl::StatusOr<Difference> DiffTargets(const Options& options) {
  ASSIGN_OR_RETURN(const CheckpointTarget a, ResolveNewestCheckpoint(options.paths[0]));
  ASSIGN_OR_RETURN(const CheckpointTarget b, ResolveNewestCheckpoint(options.paths[1]));
  ASSIGN_OR_RETURN(const Manifest ours, ManifestOf(a));
  ASSIGN_OR_RETURN(const Manifest theirs, ManifestOf(b));
  if (ours.step != theirs.step || ours.samples != theirs.samples)
    fmt::print(stderr, "note: step {} ({} samples) against step {} ({} samples)\n", ours.step,
               ours.samples, theirs.step, theirs.samples);
  ProgressLine progress("diff");
  return DiffCheckpoints(a.path, b.path, progress.callback());
}

int Diff(const Options& options) {
  const absl::StatusOr<Difference> difference = DiffTargets(options);
  if (!difference.ok()) return FailCkpt(difference.status());
  fmt::print("{}\n", difference->identical ? "identical" : difference->what);
  return difference->identical ? kGood : kBad;
}

// --- pin ----------------------------------------------------------------------------------------

int ChangePin(const Options& options, bool pin) {
  const std::string run = AbsolutePath(options.paths[0]);
  absl::Status status = CheckpointsOfRun(run).status();
  if (status.ok())
    status = pin ? PinCheckpoint(run, options.paths[1]) : UnpinCheckpoint(run, options.paths[1]);
  if (!status.ok()) return FailCkpt(status);
  if (options.json)
    fmt::print("{}\n", Json({{"name", options.paths[1]}, {"pinned", pin}}).dump(2));
  else
    fmt::print("{} is {}\n", options.paths[1], pin ? "pinned: it is kept" : "not pinned any more");
  return kGood;
}

int Pin(const Options& options) { return ChangePin(options, true); }
int Unpin(const Options& options) { return ChangePin(options, false); }

CLI::App* AddSubcommand(CLI::App& parent, const char* name, const char* doc, int* exit_code,
                        const std::shared_ptr<Options>& options, int (*run)(const Options&)) {
  CLI::App* command = parent.add_subcommand(name, doc);
  command->callback([=] { *exit_code = run(*options); });
  return command;
}

}  // namespace

void AddCkptCommand(CLI::App& app, int* exit_code) {
  CLI::App* ckpt = app.add_subcommand(
      "ckpt", "List, inspect, verify, compare, re-cut, import and export checkpoints");
  ckpt->require_subcommand(1);
  const auto options = std::make_shared<Options>();  // Of the one subcommand that is given.
  const auto json = [&](CLI::App* command) {
    command->add_flag("--json", options->json, "Print JSON");
  };

  CLI::App* list = AddSubcommand(*ckpt, "list", "The committed checkpoints of a run, oldest first",
                                 exit_code, options, List);
  list->add_option("RUN_DIR", options->paths, "A run's directory")->required()->expected(1);
  list->add_flag("--all", options->all, "Retired ones, too");
  list->add_flag("--verify", options->verify, "Read them now; exit 1 when one is bad");
  json(list);

  CLI::App* inspect =
      AddSubcommand(*ckpt, "inspect", "What a checkpoint holds; of a run, its newest", exit_code,
                    options, Inspect);
  inspect->add_option("PATH", options->paths, "A checkpoint or a run")->required()->expected(1);
  inspect->add_option("--tensor", options->tensor, "This tensor only, with its atoms");
  inspect->add_flag("--stats", options->stats, "Minimum, maximum, mean, rms of each tensor");
  json(inspect);

  CLI::App* verify = AddSubcommand(
      *ckpt, "verify", "Read checkpoints and compare every digest; exit 1 when one is bad",
      exit_code, options, Verify);
  verify->add_option("PATH", options->paths, "Checkpoints, or runs (all they have)")->required();
  json(verify);

  CLI::App* diff = AddSubcommand(
      *ckpt, "diff", "Whether two checkpoints hold the same bits, or where they first differ",
      exit_code, options, Diff);
  diff->add_option("PATHS", options->paths, "Two checkpoints, or runs (their newest)")
      ->required()
      ->expected(2);

  CLI::App* pin = AddSubcommand(*ckpt, "pin", "Keep a checkpoint until it is unpinned", exit_code,
                                options, Pin);
  CLI::App* unpin =
      AddSubcommand(*ckpt, "unpin", "Let retention take it again", exit_code, options, Unpin);
  for (CLI::App* command : {pin, unpin}) {
    command->add_option("RUN_DIR NAME", options->paths, "A run's directory, a checkpoint's name")
        ->required()
        ->expected(2);
    json(command);
  }

  AddReshardCommand(*ckpt, exit_code);
  AddExchangeCommands(*ckpt, exit_code);
}

}  // namespace perdure
