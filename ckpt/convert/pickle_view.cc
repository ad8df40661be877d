#include "ckpt/convert/pickle_view.h"

namespace perdure {

bool PickleView::Names(const PickleValue* callee, std::string_view module,
                       std::string_view name) const {
  return callee != nullptr && callee->kind == PickleKind::kGlobal && callee->text == module &&
         callee->name == name;
}

bool PickleView::IsGlobal(std::string_view module, std::string_view name) const {
  return Names(value_, module, name);
}

bool PickleView::IsCall(std::string_view module, std::string_view name) const {
  return Is(PickleKind::kCall) && Names(value_->callee, module, name);
}

absl::Status PickleView::Unexpected(std::string_view expected) const {
  return DataLoss("{} is {}: {}", where_, DescribePickle(*value_), expected);
}

absl::StatusOr<int64_t> PickleView::Int() const {
  if (!Is(PickleKind::kInt)) return Unexpected("an int was expected");
  return value_->integer;
}

absl::StatusOr<bool> PickleView::Bool() const {
  if (!Is(PickleKind::kBool)) return Unexpected("a bool was expected");
  return value_->integer != 0;
}

absl::StatusOr<double> PickleView::Number() const {
  if (Is(PickleKind::kFloat)) return value_->real;
  if (!Is(PickleKind::kInt)) return Unexpected("a number was expected");
  return static_cast<double>(value_->integer);
}

absl::StatusOr<std::string> PickleView::String() const {
  if (!Is(PickleKind::kString)) return Unexpected("a str was expected");
  return std::string(value_->text);
}

absl::StatusOr<std::vector<PickleView>> PickleView::Items() const {
  const PickleValue* list = value_;
  if (IsCall("torch", "Size") && value_->args->items.size() == 1) list = value_->args->items[0];
  if (list->kind != PickleKind::kTuple && list->kind != PickleKind::kList)
    return Unexpected("a tuple or a list was expected");
  std::vector<PickleView> items;
  items.reserve(list->items.size());
  for (size_t i = 0; i < list->items.size(); ++i)
    items.emplace_back(*list->items[i], fmt::format("{}[{}]", where_, i));
  return items;
}

absl::StatusOr<std::vector<int64_t>> PickleView::Ints() const {
  ASSIGN_OR_RETURN(const std::vector<PickleView> items, Items());
  std::vector<int64_t> values;
  for (const PickleView& item : items) {
    ASSIGN_OR_RETURN(const int64_t value, item.Int());
    values.push_back(value);
  }
  return values;
}

absl::StatusOr<std::vector<PickleView::Pair>> PickleView::Pairs() const {
  const bool ordered = IsCall("collections", "OrderedDict") && value_->args->items.empty() &&
                       (value_->pairs || value_->items.empty());
  if (!Is(PickleKind::kDict) && !ordered) return Unexpected("a dict was expected");
  std::vector<Pair> pairs;
  pairs.reserve(value_->items.size() / 2);
  for (size_t i = 0; i + 1 < value_->items.size(); i += 2) {
    const PickleValue& key = *value_->items[i];
    std::string name = key.kind == PickleKind::kString ? fmt::format("{}.{}", where_, key.text)
                       : key.kind == PickleKind::kInt  ? fmt::format("{}[{}]", where_, key.integer)
                                                       : fmt::format("{}[key {}]", where_, i / 2);
    pairs.emplace_back(PickleView(key, name + " (the key)"),
                       PickleView(*value_->items[i + 1], name));
  }
  return pairs;
}

template <typename Matches>
absl::StatusOr<std::optional<PickleView>> PickleView::FindIf(const Matches& matches,
                                                             const std::string& key) const {
  ASSIGN_OR_RETURN(const std::vector<Pair> pairs, Pairs());
  std::optional<PickleView> found;
  for (const auto& [name, value] : pairs) {
    if (!matches(name.value())) continue;
    if (found.has_value()) return DataLoss("{} has the key {} twice", where_, key);
    found = value;
  }
  return found;
}

absl::StatusOr<std::optional<PickleView>> PickleView::Find(std::string_view key) const {
  return FindIf(
      [key](const PickleValue& name) {
        return name.kind == PickleKind::kString && name.text == key;
      },
      std::string(key));
}

absl::StatusOr<PickleView> PickleView::Get(std::string_view key) const {
  ASSIGN_OR_RETURN(const std::optional<PickleView> found, Find(key));
  if (!found.has_value()) return DataLoss("{} has no key {}", where_, key);
  return *found;
}

absl::StatusOr<PickleView> PickleView::Get(int64_t key) const {
  const auto matches = [key](const PickleValue& name) {
    return name.kind == PickleKind::kInt && name.integer == key;
  };
  ASSIGN_OR_RETURN(const std::optional<PickleView> found, FindIf(matches, std::to_string(key)));
  if (!found.has_value()) return DataLoss("{} has no key {}", where_, key);
  return *found;
}

absl::StatusOr<std::vector<PickleView>> PickleView::CallArguments(std::string_view module,
                                                                  std::string_view name,
                                                                  size_t least) const {
  if (!IsCall(module, name))
    return Unexpected(fmt::format("a call of {}.{} was expected", module, name));
  ASSIGN_OR_RETURN(std::vector<PickleView> arguments, PickleView(*value_->args, where_).Items());
  if (arguments.size() < least)
    return Unexpected(fmt::format("it has {} arguments and needs {}", arguments.size(), least));
  return arguments;
}

absl::StatusOr<PickleView> PickleView::Fields(std::string_view module,
                                              std::string_view name) const {
  if (!Is(PickleKind::kObject) || !Names(value_->callee, module, name))
    return Unexpected(fmt::format("an object of {}.{} was expected", module, name));
  if (value_->state == nullptr) return Unexpected("it has no fields");
  return PickleView(*value_->state, where_);
}

}  // namespace perdure
