// A restricted reader of Python pickles: bytes in, a tree of inert values out.
//
// Nothing is executed, imported or looked up: a class or function is its name (kGlobal), a call is
// a note of what would have been called with what (kCall, kObject), and whoever reads the tree
// decides which names it believes. The opcodes are those that torch.save, the optimizers' files and
// torch's distributed checkpoints are made of, protocols 2 to 5; any other ends the reading.
//
// Invariant: memory is linear in the input (at most one node per byte; what is memoised is shared,
// never copied) and no depth of nesting recurses. Values may form cycles through lists, dicts and
// states, so a reader follows only shapes that it knows. The tree owns all nodes. Thread: any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace perdure {

enum class PickleKind : uint8_t {
  kNone,
  kBool,
  kInt,
  kFloat,
  kString,
  kBytes,
  kTuple,
  kList,
  kDict,
  kGlobal,        // A name: text is the module, name the name in it.
  kCall,          // REDUCE: callee(*args).
  kObject,        // NEWOBJ: an instance of class callee, made with args.
  kPersistentId,  // args is the id.
};

struct PickleValue {
  PickleKind kind = PickleKind::kNone;
  bool pairs = false;     // Whether items are keys and values in turn.
  int64_t integer = 0;    // kInt; kBool as 0 or 1.
  double real = 0;        // kFloat.
  std::string_view text;  // kString, kBytes; the module of a kGlobal.
  std::string_view name;  // Of a kGlobal.
  // Elements of a tuple or list; keys and values in turn of a dict. A call or an object has what
  // was set or appended to it afterwards.
  std::vector<const PickleValue*> items;
  const PickleValue* callee = nullptr;
  const PickleValue* args = nullptr;
  const PickleValue* state = nullptr;  // What BUILD gave a call or an object; null if nothing.
};

// More is refused before anything is parsed: the metadata of 10^6 chunks has fewer.
inline constexpr size_t kPickleBytesMax = size_t{256} << 20;

class PickleTree {
 public:
  const PickleValue& root() const { return *root_; }
  size_t nodes() const { return nodes_.size(); }

 private:
  friend class PickleParser;

  std::unique_ptr<const std::string> bytes_;  // What the values' texts point into.
  std::deque<PickleValue> nodes_;
  const PickleValue* root_ = nullptr;
};

// `what` names the bytes in messages. DataLoss names the byte, the opcode and what is wrong; the
// pickle must be all of `bytes`.
absl::StatusOr<PickleTree> Unpickle(std::string bytes, std::string_view what);

// "a str \"fp32\"", "a dict of 3", "torch.FloatStorage": for messages, never long.
std::string DescribePickle(const PickleValue& value);

}  // namespace perdure
