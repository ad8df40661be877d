#include "launch/config.h"

#include <algorithm>
#include <map>

#include "launch/config_fields.h"
#include "launch/sites/sites.h"
#include "model/parameters.h"
#include "runtime/base/check.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

std::string PhaseLabel(std::string_view name) { return fmt::format("phase.{}.", name); }

template <typename Owner>
std::vector<std::string> KeysOf(const std::vector<Field<Owner>>& fields) {
  std::vector<std::string> keys;
  keys.reserve(fields.size());
  for (const Field<Owner>& field : fields) keys.push_back(field.key);
  return keys;
}

bool IsWithin(std::string_view key, std::string_view parent) {
  return parent.empty() || (key.size() > parent.size() && key.substr(0, parent.size()) == parent &&
                            key[parent.size()] == '.');
}

// The distinct next components of the keys within `parent`.
std::vector<std::string> ChildrenOf(const std::vector<std::string>& keys, std::string_view parent) {
  std::vector<std::string> children;
  for (const std::string& key : keys) {
    if (!IsWithin(key, parent)) continue;
    const std::string_view rest =
        std::string_view(key).substr(parent.empty() ? 0 : parent.size() + 1);
    const std::string child(rest.substr(0, rest.find('.')));
    if (std::find(children.begin(), children.end(), child) == children.end())
      children.push_back(child);
  }
  return children;
}

std::string Join(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

// What may have been meant by an unknown key of `keys`, which are shown with `label` in front.
std::string Suggest(std::string_view wrong, const std::string& label,
                    const std::vector<std::string>& keys) {
  const std::string parent(KeyParent(wrong));
  const std::string dotted = parent.empty() ? "" : parent + ".";
  std::vector<std::string> siblings = ChildrenOf(keys, parent);
  if (label.empty() && parent.empty()) siblings.push_back("phase");
  const std::string near = NearestKey(KeyName(wrong), siblings);
  if (!near.empty()) return fmt::format("did you mean {}{}{}?", label, dotted, near);
  for (const std::string& key : KeysOf(RunFields()))
    if (KeyName(key) == KeyName(wrong)) return fmt::format("did you mean {}?", key);
  for (const std::string& key : KeysOf(PhaseFields()))
    if (KeyName(key) == KeyName(wrong)) return fmt::format("did you mean phase.NAME.{}?", key);
  return siblings.empty() ? fmt::format("{}{} is a value, not a table", label, parent)
                          : "known here: " + Join(siblings);
}

// ---- TOML to RunConfig --------------------------------------------------------------------------

// Reads nodes into a RunConfig and remembers where each key was set.
class Reader {
 public:
  explicit Reader(std::string origin) : origin_(std::move(origin)) {}

  absl::Status ReadFileText(const std::string& text);
  // A site's profile, beneath what is read later: nothing that fixes the run's numbers.
  absl::Status ReadSite(const std::string& text, bool foreign);
  absl::Status ReadSetting(const std::string& setting);
  void SetOrigin(std::string origin) { origin_ = std::move(origin); }
  const std::string& site() const { return config_.slurm.site; }
  bool foreign() const { return config_.foreign(); }
  // Everything was read: are the required keys there, and is the whole sound?
  absl::StatusOr<RunConfig> Finish();

 private:
  template <typename Owner>
  absl::Status ReadNode(const std::string& label, const std::string& key, const toml::node& node,
                        const std::vector<Field<Owner>>& fields, Owner& owner);
  absl::Status ReadPhases(const toml::node& node);
  absl::Status ReadPhaseSetting(const std::string& key, const toml::node& node);
  template <typename Owner>
  absl::Status CheckRequired(const std::string& label,
                             const std::vector<Field<Owner>>& fields) const;

  // "run.toml:3:7", or the --set that is being read.
  std::string Place(const toml::source_region& source) const {
    return setting_.empty()
               ? fmt::format("{}:{}:{}", origin_, source.begin.line, source.begin.column)
               : "--set " + setting_;
  }
  absl::Status AtItsPlace(const absl::Status& status) const;
  absl::Status CheckForeign() const;

  std::string origin_;
  std::string setting_;  // While it is read; else empty.
  RunConfig config_;
  std::vector<std::string> labels_;            // Of phases, as PhaseLabel.
  std::map<std::string, std::string> places_;  // Full key -> where it was set last.
};

template <typename Owner>
absl::Status Reader::ReadNode(const std::string& label, const std::string& key,
                              const toml::node& node, const std::vector<Field<Owner>>& fields,
                              Owner& owner) {
  const auto exact = std::find_if(fields.begin(), fields.end(),
                                  [&](const Field<Owner>& field) { return field.key == key; });
  const bool group = std::any_of(fields.begin(), fields.end(), [&](const Field<Owner>& field) {
    return IsWithin(field.key, key);
  });
  if (const toml::table* table = node.as_table(); table != nullptr && group) {
    for (const auto& [name, child] : *table)
      RETURN_IF_ERROR(ReadNode(label, fmt::format("{}.{}", key, std::string_view(name.str())),
                               child, fields, owner));
    return absl::OkStatus();
  }
  const std::string place = Place(node.source());
  if (exact == fields.end() && group)
    return InvalidArgument("{}: {}{} = {} must be a section: [{}]", place, label, key,
                           ShowNode(node), key);
  if (exact == fields.end())
    return InvalidArgument("{}: unknown key {}{}; {}", place, label, key,
                           Suggest(key, label, KeysOf(fields)));
  if (const std::string wrong = exact->read(node, owner); !wrong.empty())
    return InvalidArgument("{}: {}{} = {} {}", place, label, key, ShowNode(node), wrong);
  places_[label + key] = place;
  if (exact->presence == Presence::kShorthand) {
    for (const Field<Owner>& field : fields)
      if (IsWithin(field.key, key)) places_[label + field.key] = place;
  }
  return absl::OkStatus();
}

absl::Status Reader::ReadPhases(const toml::node& node) {
  const toml::array* array = node.as_array();
  const bool tables = array != nullptr && std::all_of(array->begin(), array->end(),
                                                      [](const auto& n) { return n.is_table(); });
  if (!tables)
    return InvalidArgument("{}: phase must be a list of tables: begin each phase with [[phase]]",
                           Place(node.source()));
  for (const toml::node& entry : *array) {
    const std::string name = entry.as_table()->get("name") == nullptr
                                 ? std::string()
                                 : entry.as_table()->get("name")->value_or(std::string());
    labels_.push_back(PhaseLabel(name.empty() ? fmt::format("#{}", labels_.size() + 1) : name));
    PhaseConfig phase;
    for (const auto& [key, child] : *entry.as_table())
      RETURN_IF_ERROR(
          ReadNode(labels_.back(), std::string(key.str()), child, PhaseFields(), phase));
    config_.phases.push_back(std::move(phase));
  }
  return absl::OkStatus();
}

absl::Status Reader::ReadFileText(const std::string& text) {
  const toml::parse_result parsed = toml::parse(std::string_view(text), std::string_view(origin_));
  if (!parsed)
    return InvalidArgument("{}: not TOML: {}", Place(parsed.error().source()),
                           parsed.error().description());
  for (const auto& [name, node] : parsed.table()) {
    const std::string key(name.str());
    if (key == "phase")
      RETURN_IF_ERROR(ReadPhases(node));
    else
      RETURN_IF_ERROR(ReadNode("", key, node, RunFields(), config_));
  }
  return absl::OkStatus();
}

absl::Status Reader::ReadSite(const std::string& text, bool foreign) {
  RETURN_IF_ERROR(ReadFileText(text));
  for (const RunField& field : RunFields())
    if (field.frozen && places_.contains(field.key))
      return InvalidArgument("{}: {} fixes the numbers of a run: it belongs into run.toml",
                             places_[field.key], field.key);
  // Nobody asked for what a profile says of fabrics.
  if (foreign)
    std::erase_if(places_, [](const auto& place) { return !IsOfForeignRuns(place.first); });
  if (config_.phases.empty()) return absl::OkStatus();
  return InvalidArgument("{}: phases belong into run.toml", origin_);
}

// The value of a --set as the only entry of a table: TOML, or a bare word, which is a string. Dates
// and times are bare words too, so that job.time_limit=20:00:00 is what it looks like.
absl::StatusOr<toml::table> ParseSettingValue(const std::string& setting, std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  toml::parse_result parsed = toml::parse("value = " + std::string(text));
  if (parsed && parsed.table().size() == 1) {
    const toml::node& node = *parsed.table().get("value");
    if (!node.is_time() && !node.is_date() && !node.is_date_time())
      return std::move(parsed).table();
  }
  if (!text.empty() && std::string_view("\"'[{").find(text.front()) != std::string_view::npos)
    return InvalidArgument("--set {}: {} is not a TOML value{}", setting, text,
                           parsed ? "" : fmt::format(": {}", parsed.error().description()));
  toml::table table;
  table.insert("value", std::string(text));
  return table;
}

absl::Status Reader::ReadPhaseSetting(const std::string& key, const toml::node& node) {
  constexpr std::string_view kPrefix = "phase.";
  const size_t dot = key.find('.', kPrefix.size());
  if (dot == std::string::npos || dot + 1 == key.size())
    return InvalidArgument("--set {}: name a key of a phase, as in phase.NAME.samples=1000",
                           setting_);
  const std::string name = key.substr(kPrefix.size(), dot - kPrefix.size());
  const std::string inner = key.substr(dot + 1);
  if (inner == "name")
    return InvalidArgument("--set {}: a phase is named in the file only; change {} there", setting_,
                           origin_);
  std::vector<std::string> names;
  for (size_t i = 0; i < labels_.size(); ++i) {
    if (labels_[i] == PhaseLabel(name))
      return ReadNode(labels_[i], inner, node, PhaseFields(), config_.phases[i]);
    names.push_back(config_.phases[i].name);
  }
  const std::string near = NearestKey(name, names);
  return InvalidArgument("--set {}: no phase is named {}; {}", setting_, name,
                         near.empty() ? "there are: " + Join(names)
                                      : fmt::format("did you mean phase.{}.{}?", near, inner));
}

absl::Status Reader::ReadSetting(const std::string& setting) {
  const size_t equals = setting.find('=');
  if (equals == std::string::npos || equals == 0)
    return InvalidArgument("--set {}: write KEY=VALUE, for example layout.tensor=2", setting);
  setting_ = setting;
  std::string key = setting.substr(0, equals);
  while (!key.empty() && key.back() == ' ') key.pop_back();
  ASSIGN_OR_RETURN(const toml::table value, ParseSettingValue(setting, setting.substr(equals + 1)));
  const toml::node& node = *value.get("value");
  if (key == "phase" || key.starts_with("phase."))
    RETURN_IF_ERROR(ReadPhaseSetting(key, node));
  else
    RETURN_IF_ERROR(ReadNode("", key, node, RunFields(), config_));
  setting_.clear();
  return absl::OkStatus();
}

template <typename Owner>
absl::Status Reader::CheckRequired(const std::string& label,
                                   const std::vector<Field<Owner>>& fields) const {
  for (const Field<Owner>& field : fields) {
    if (field.presence != Presence::kRequired || places_.contains(label + field.key)) continue;
    if (config_.foreign() && !IsOfForeignRuns(label + field.key)) continue;
    return InvalidArgument(
        "{}: {}{} is missing: {}; add it to {}, or --set {}{}=...", origin_, label, field.key,
        field.doc, label.empty() ? fmt::format("[{}]", KeyParent(field.key)) : "its [[phase]]",
        label, field.key);
  }
  return absl::OkStatus();
}

// A message of ValidateConfig begins with the key at fault: says where that was set.
absl::Status Reader::AtItsPlace(const absl::Status& status) const {
  const std::string message = Message(status);
  const auto place = places_.find(message.substr(0, message.find(' ')));
  return InvalidArgument("{}: {}", place == places_.end() ? origin_ : place->second, message);
}

// What would mean nothing is refused: somebody expects it to mean something.
absl::Status Reader::CheckForeign() const {
  for (const auto& [key, place] : places_)
    if (!IsOfForeignRuns(key))
      return InvalidArgument(
          "{}: {} means nothing to exec.command = {}: what is trained, and how, is that program's "
          "to know; leave it out",
          place, key, config_.exec.command[0]);
  return absl::OkStatus();
}

absl::StatusOr<RunConfig> Reader::Finish() {
  if (config_.foreign()) RETURN_IF_ERROR(CheckForeign());
  RETURN_IF_ERROR(CheckRequired("", RunFields()));
  for (const std::string& label : labels_) RETURN_IF_ERROR(CheckRequired(label, PhaseFields()));
  if (absl::Status status = ValidateConfig(config_); !status.ok()) return AtItsPlace(status);
  if (config_.foreign()) return std::move(config_);
  config_.model = ResolveModel(config_.model);
  return std::move(config_);
}

// ---- RunConfig to text --------------------------------------------------------------------------

void PrintPhase(const PhaseConfig& phase, std::string& text) {
  text += "\n[[phase]]\n";
  std::string group;
  for (const PhaseField& field : PhaseFields()) {
    if (field.presence == Presence::kShorthand) continue;
    const std::string parent(KeyParent(field.key));
    if (parent != group) {
      if (!group.empty()) text += " }\n";
      if (!parent.empty()) text += parent + " = { ";
    } else if (!parent.empty()) {
      text += ", ";
    }
    group = parent;
    text += fmt::format("{} = {}", KeyName(field.key), field.print(phase));
    if (parent.empty()) text += '\n';
  }
  if (!group.empty()) text += " }\n";
}

template <typename Owner>
void DescribeFields(const std::string& label, const std::vector<Field<Owner>>& fields,
                    std::string& text) {
  const Owner defaults;
  for (const Field<Owner>& field : fields) {
    const std::string value = field.presence == Presence::kRequired    ? "(required)"
                              : field.presence == Presence::kShorthand ? "(short form)"
                                                                       : field.print(defaults);
    text +=
        fmt::format("{:<52}  # {}\n", fmt::format("{}{} = {}", label, field.key, value), field.doc);
  }
}

// ---- Frozen runs --------------------------------------------------------------------------------

template <typename Owner>
absl::Status CompareFrozen(const std::string& run, const std::string& label,
                           const std::vector<Field<Owner>>& fields, const Owner& frozen,
                           const Owner& now) {
  for (const Field<Owner>& field : fields) {
    if (!field.frozen || field.presence == Presence::kShorthand) continue;
    const std::string before = field.print(frozen);
    const std::string after = field.print(now);
    if (before == after || (field.auto_matches && after == "\"auto\"")) continue;
    return FailedPrecondition(
        "{}{} = {}, but run {} began with {}, and it fixes the run's numbers: set it back, or "
        "begin "
        "a new run in another directory",
        label, field.key, after, run, before);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<RunConfig> ParseConfig(const std::string& text, const std::string& origin,
                                      const std::vector<std::string>& settings) {
  Reader reader(origin);
  RETURN_IF_ERROR(reader.ReadFileText(text));
  for (const std::string& setting : settings) RETURN_IF_ERROR(reader.ReadSetting(setting));
  return reader.Finish();
}

absl::StatusOr<RunConfig> LoadConfig(const std::string& path,
                                     const std::vector<std::string>& settings) {
  const absl::StatusOr<std::string> text =
      path.empty() ? absl::StatusOr<std::string>("") : ReadFile(path);
  if (!text.ok())
    return InvalidArgument("cannot read the run's configuration: {}; name an existing run.toml",
                           Message(text.status()));
  Reader scout(path);
  RETURN_IF_ERROR(scout.ReadFileText(*text));
  for (const std::string& setting : settings) RETURN_IF_ERROR(scout.ReadSetting(setting));
  Reader reader(path);
  if (!scout.site().empty()) {
    ASSIGN_OR_RETURN(const Site site, FindSite(scout.site()));
    reader.SetOrigin(site.origin);
    RETURN_IF_ERROR(reader.ReadSite(site.text, scout.foreign()));
    reader.SetOrigin(path);
  }
  RETURN_IF_ERROR(reader.ReadFileText(*text));
  for (const std::string& setting : settings) RETURN_IF_ERROR(reader.ReadSetting(setting));
  return reader.Finish();
}

std::string PrintConfig(const RunConfig& config) {
  std::string text;
  std::string section;
  for (const RunField& field : RunFields()) {
    if (config.foreign() ? !IsOfForeignRuns(field.key) : field.key.starts_with("exec.")) continue;
    if (const std::string parent(KeyParent(field.key)); parent != section) {
      // The order of a run.toml: what is trained and on what, the phases, how.
      if (section == "model")
        for (const PhaseConfig& phase : config.phases) PrintPhase(phase, text);
      text += fmt::format("{}[{}]\n", text.empty() ? "" : "\n", parent);
      section = parent;
    }
    text += fmt::format("{} = {}\n", KeyName(field.key), field.print(config));
  }
  return text;
}

absl::Status CheckFrozen(const RunConfig& frozen, const RunConfig& now, int phases_begun) {
  if (frozen.foreign() != now.foreign())
    return FailedPrecondition(
        "run {} {} a trainer of its own (exec.command), and cannot begin to do {}: take another "
        "directory",
        frozen.name, frozen.foreign() ? "runs" : "does not run",
        frozen.foreign() ? "without" : "so");
  PERDURE_CHECK(phases_begun >= 0 && static_cast<size_t>(phases_begun) <= frozen.phases.size());
  RETURN_IF_ERROR(CompareFrozen(frozen.name, "", RunFields(), frozen, now));
  for (size_t i = 0; i < static_cast<size_t>(phases_begun); ++i) {
    const PhaseConfig& before = frozen.phases[i];
    if (i >= now.phases.size())
      return FailedPrecondition(
          "phase.{} is gone, but run {} has begun it: put it back, or begin a new run in another "
          "directory",
          before.name, frozen.name);
    RETURN_IF_ERROR(
        CompareFrozen(frozen.name, PhaseLabel(before.name), PhaseFields(), before, now.phases[i]));
  }
  return absl::OkStatus();
}

std::string DescribeConfig() {
  std::string text;
  DescribeFields("", RunFields(), text);
  DescribeFields(PhaseLabel("NAME"), PhaseFields(), text);
  DescribeFields("phase.NAME.mixture[].", SourceFields(), text);
  return text;
}

}  // namespace perdure
