#include "launch/sbatch_options.h"

#include <algorithm>

#include "launch/slurm/hostlist.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {

std::optional<std::string> ValueOf(const SbatchOption& option,
                                   std::span<const std::string> options) {
  std::optional<std::string> value;
  for (size_t i = 0; i < options.size(); ++i) {
    const std::string_view word = options[i];
    if (word.size() < 2 || word[0] != '-') continue;
    if (word[1] == option.letter) {
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
