// Strict reading of pickled values: each step says what it expects, and an error says where it
// stood ("x.pt: data.pkl: optimizer_state_dict.group_paddings[1] is ..."). Never follows more than
// one step, so cycles in a hostile pickle lead nowhere. The tree outlives its views.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ckpt/convert/pickle.h"
#include "runtime/base/status.h"

namespace perdure {

class PickleView {
 public:
  using Pair = std::pair<PickleView, PickleView>;

  // `where` begins messages: the file, and the way to the value.
  PickleView(const PickleValue& value, std::string where)
      : value_(&value), where_(std::move(where)) {}

  const PickleValue& value() const { return *value_; }
  const std::string& where() const { return where_; }

  bool Is(PickleKind kind) const { return value_->kind == kind; }
  bool IsNone() const { return Is(PickleKind::kNone); }
  bool IsGlobal(std::string_view module, std::string_view name) const;
  bool IsCall(std::string_view module, std::string_view name) const;

  absl::StatusOr<int64_t> Int() const;
  absl::StatusOr<bool> Bool() const;
  absl::StatusOr<double> Number() const;  // An int or a float.
  absl::StatusOr<std::string> String() const;
  // Of a tuple, a list, a torch.Size.
  absl::StatusOr<std::vector<PickleView>> Items() const;
  absl::StatusOr<std::vector<int64_t>> Ints() const;
  // Of a dict or an OrderedDict.
  absl::StatusOr<std::vector<Pair>> Pairs() const;
  // The value of a key; a key that is there twice is an error, one that is not an error (Get) or
  // nothing (Find).
  absl::StatusOr<PickleView> Get(std::string_view key) const;
  absl::StatusOr<PickleView> Get(int64_t key) const;
  absl::StatusOr<std::optional<PickleView>> Find(std::string_view key) const;
  // The arguments of a call of that function: at least `least` of them.
  absl::StatusOr<std::vector<PickleView>> CallArguments(std::string_view module,
                                                        std::string_view name, size_t least) const;
  // The fields of an object of that class, a dict.
  absl::StatusOr<PickleView> Fields(std::string_view module, std::string_view name) const;

  // DataLoss: "<where> is <what it is>: <expected>".
  absl::Status Unexpected(std::string_view expected) const;

 private:
  bool Names(const PickleValue* callee, std::string_view module, std::string_view name) const;
  template <typename Matches>
  absl::StatusOr<std::optional<PickleView>> FindIf(const Matches& matches,
                                                   const std::string& key) const;

  const PickleValue* value_;
  std::string where_;
};

}  // namespace perdure
