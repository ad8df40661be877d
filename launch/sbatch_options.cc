#include "launch/sbatch_options.h"

#include <algorithm>

#include "launch/slurm/hostlist.h"
#include "launch/slurm/text_reader.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {

std::optional<std::string> ValueOf(const SbatchOption& option,
                                   std::span<const std::string> options) {
  std::optional<std::string> value;
  for (size_t i = 0; i < options.size(); ++i) {
    const std::string_view word = options[i];
    if (word.size() < 2 || word[0] != '-') continue;
    if (option.letter != 0 && word[1] == option.letter) {
      if (word.size() > 2)
        value = std::string(word.substr(2));
      else if (i + 1 < options.size())
        value = options[++i];
      continue;
    }
    if (word[1] != '-') continue;
    const size_t equals = word.find('=');
    const std::string_view name = word.substr(2, equals == word.npos ? word.npos : equals - 2);
    if (!name.starts_with(option.unique) || !option.name.starts_with(name)) continue;
    if (equals != word.npos)
      value = std::string(word.substr(equals + 1));
    else if (i + 1 < options.size())
      value = options[++i];
  }
  return value;
}

std::optional<std::string> CountingValueOf(const SbatchOption& option,
                                           std::span<const std::string> command_line,
                                           const EnvironmentLookup& lookup,
                                           std::span<const std::string> script) {
  std::optional<std::string> value = ValueOf(option, command_line);
  if (!value.has_value() && !option.variable.empty()) value = lookup(option.variable);
  return value.has_value() ? value : ValueOf(option, script);
}

int64_t GpusOfGres(std::string_view gres) {
  int64_t gpus = 0;
  for (const std::string_view part : Split(gres, ",")) {
    const std::vector<std::string_view> words = Split(part, ":");
    if (words[0] != "gpu") continue;
    // "gpu", "gpu:4", "gpu:h100", "gpu:h100:4".
    gpus += ParseNumber<int64_t>(words.back()).value_or(1);
  }
  return gpus;
}

int64_t GpusPerNode(std::string_view count) {
  int64_t gpus = 0;
  for (const std::string_view part : Split(count, ","))
    gpus += ParseNumber<int64_t>(Split(part, ":").back()).value_or(0);
  return gpus;
}

absl::StatusOr<std::vector<std::string>> ExcludedByOptions(std::span<const std::string> options) {
  std::string list = ValueOf(kExcludeOption, options).value_or("");
  const std::string said = list;
  if (list.find('/') != std::string::npos) {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(list));
    list.clear();
    bool between = true;  // Names are parted by commas or by any space.
    for (const char c : text) {
      const bool parts = c == ',' || static_cast<unsigned char>(c) <= ' ';
      if (!parts && between && !list.empty()) list += ',';
      if (!parts) list += c;
      between = parts;
    }
  }
  absl::StatusOr<std::vector<std::string>> names = ExpandHostlist(list);
  if (!names.ok())
    return InvalidArgument("--exclude={} among the options of sbatch: {}", said,
                           Message(names.status()));
  std::sort(names->begin(), names->end());
  names->erase(std::unique(names->begin(), names->end()), names->end());
  return names;
}

}  // namespace perdure
