// The one table of configuration fields, used by config*.cc alone: parse, --set, print, compare,
// describe, validate and suggest all walk it.
//
// A field has a dotted key ("layout.tensor"; within a phase "batch.initial") and knows how to read
// itself from TOML, print itself as TOML, and what values it may have. Where a field is not at
// fault its functions return "", else a clause that goes behind `key = value`: "must be an integer,
// ...".
#pragma once

// Parse errors come back as values: nothing of ours throws.
#define TOML_EXCEPTIONS 0
#include <toml++/toml.h>

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/train/run_config.h"

namespace perdure {

enum class Presence {
  kOptional,   // Has a default.
  kRequired,   // Must be in the file or a --set.
  kShorthand,  // Sets the fields `key`.* at once; never printed or compared.
};

template <typename Owner>
struct Field {
  std::string key;
  std::string doc;  // One line, without a full stop.
  Presence presence = Presence::kOptional;
  bool frozen = false;        // Fixes the bits: the same at every start of a run.
  bool auto_matches = false;  // "auto" agrees with any frozen value.
  std::function<std::string(const toml::node&, Owner&)> read;
  std::function<std::string(const Owner&)> print;
  std::function<std::string(const Owner&)> check;  // Range and choices.
};

using RunField = Field<RunConfig>;
using PhaseField = Field<PhaseConfig>;
using SourceField = Field<SourceConfig>;

// Everything but the phases, in the order of sections.
const std::vector<RunField>& RunFields();
// Whether a key means something to a run whose trainer is not ours ([exec]).
bool IsOfForeignRuns(const std::string& key);
// The keys of one [[phase]].
const std::vector<PhaseField>& PhaseFields();
// The keys of one entry of a phase's mixture.
const std::vector<SourceField>& SourceFields();

// A command as the value of exec.command.
std::string PrintCommand(const std::vector<std::string>& command);

// A node as it stands in the file, shortened; for messages.
std::string ShowNode(const toml::node& node);

// The part of a key before its last dot ("layout" of "layout.tensor"), and behind it.
std::string_view KeyParent(std::string_view key);
std::string_view KeyName(std::string_view key);

// `key` among `known` that a person may have meant by `wrong`; "" if none is near.
std::string NearestKey(std::string_view wrong, const std::vector<std::string>& known);

}  // namespace perdure
