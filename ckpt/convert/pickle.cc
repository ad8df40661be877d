#include "ckpt/convert/pickle.h"

#include <algorithm>
#include <bit>
#include <cctype>
#include <utility>

#include "ckpt/convert/pickle_opcodes.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

bool IsNameCharacter(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '.' || c == '<' ||
         c == '>';
}

bool IsName(std::string_view text) {
  return !text.empty() && text.size() <= 1024 &&
         std::all_of(text.begin(), text.end(), IsNameCharacter);
}

// As Python writes it: lone surrogates may occur ("surrogatepass"), nothing else is lenient.
bool IsUtf8(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const size_t length = lead < 0x80 ? 1 : lead >> 5 == 6 ? 2 : lead >> 4 == 14 ? 3 : 4;
    if (length == 4 && lead >> 3 != 30) return false;
    if (i + length > text.size()) return false;
    uint32_t code = length == 1 ? lead : lead & (0x7FU >> length);
    for (size_t k = 1; k < length; ++k) {
      const auto next = static_cast<unsigned char>(text[i + k]);
      if (next >> 6 != 2) return false;
      code = code << 6 | (next & 0x3FU);
    }
    constexpr uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
    if (code < kLeast[length] || code > 0x10FFFF) return false;
    i += length;
  }
  return true;
}

}  // namespace

class PickleParser {
 public:
  PickleParser(std::string bytes, std::string_view what) : what_(what) {
    tree_.bytes_ = std::make_unique<const std::string>(std::move(bytes));
    input_ = *tree_.bytes_;
  }

  absl::StatusOr<PickleTree> Parse();

 private:
  using Value = PickleValue;

  template <typename... Args>
  absl::Status Fail(fmt::format_string<Args...> format, Args&&... args) const {
    return DataLoss("{}: byte {}, {}: {}", what_, opcode_at_, PickleOpcodeName(opcode_),
                    fmt::format(format, std::forward<Args>(args)...));
  }

  absl::StatusOr<std::string_view> Take(uint64_t count);
  absl::StatusOr<uint64_t> TakeUnsigned(int bytes);
  absl::StatusOr<std::string_view> TakeLine();

  Value* New(PickleKind kind) {
    tree_.nodes_.emplace_back();
    tree_.nodes_.back().kind = kind;
    return &tree_.nodes_.back();
  }
  // One node each is enough: nobody changes them.
  void PushConstant(Value*& shared, PickleKind kind, int64_t integer = 0) {
    if (shared == nullptr) {
      shared = New(kind);
      shared->integer = integer;
    }
    stack_.push_back(shared);
  }

  size_t Base() const { return marks_.empty() ? 0 : marks_.back(); }
  size_t Above() const { return stack_.size() - Base(); }
  absl::Status Need(size_t count) const;
  absl::StatusOr<std::vector<const Value*>> PopToMark();

  absl::Status Step();
  absl::Status StepNumber();
  absl::Status StepText();
  absl::Status StepTuple();
  absl::Status StepAppend();
  absl::Status StepSet();
  absl::Status StepMemo();
  absl::Status StepName();
  absl::Status StepObject();
  absl::Status StepFrame();
  absl::Status Finish();

  void PushInt(int64_t value) {
    Value* node = New(PickleKind::kInt);
    node->integer = value;
    stack_.push_back(node);
  }

  std::string what_;
  PickleTree tree_;
  std::string_view input_;
  size_t at_ = 0;
  size_t opcode_at_ = 0;
  uint8_t opcode_ = 0;
  bool done_ = false;
  std::vector<Value*> stack_;
  std::vector<size_t> marks_;  // Heights of the stack.
  std::vector<Value*> memo_;   // Picklers number from 0 without a gap.
  Value *none_ = nullptr, *true_ = nullptr, *false_ = nullptr, *empty_ = nullptr;
};

absl::StatusOr<PickleTree> PickleParser::Parse() {
  if (input_.size() > kPickleBytesMax)
    return DataLoss("{}: {} bytes of pickle; more than {} are refused", what_, input_.size(),
                    kPickleBytesMax);
  if (input_.size() < 2 || static_cast<uint8_t>(input_[0]) != kPickleProto)
    return DataLoss("{}: byte 0: no pickle of protocol 2 or later begins here", what_);
  while (!done_) {
    opcode_at_ = at_;
    if (at_ >= input_.size())
      return DataLoss("{}: byte {}: the pickle ends without STOP: truncated", what_, at_);
    opcode_ = static_cast<uint8_t>(input_[at_++]);
    RETURN_IF_ERROR(Step());
  }
  return std::move(tree_);
}

absl::StatusOr<std::string_view> PickleParser::Take(uint64_t count) {
  if (count > input_.size() - at_)
    return Fail("{} bytes are to follow and {} do: truncated", count, input_.size() - at_);
  const std::string_view taken = input_.substr(at_, count);
  at_ += count;
  return taken;
}

absl::StatusOr<uint64_t> PickleParser::TakeUnsigned(int bytes) {
  ASSIGN_OR_RETURN(const std::string_view raw, Take(static_cast<uint64_t>(bytes)));
  uint64_t value = 0;
  for (size_t i = raw.size(); i > 0; --i) value = value << 8 | static_cast<uint8_t>(raw[i - 1]);
  return value;
}

absl::StatusOr<std::string_view> PickleParser::TakeLine() {
  const size_t end = input_.find('\n', at_);
  if (end == input_.npos) return Fail("a line without an end: truncated");
  const std::string_view line = input_.substr(at_, end - at_);
  at_ = end + 1;
  return line;
}

absl::Status PickleParser::Need(size_t count) const {
  if (Above() >= count) return absl::OkStatus();
  return Fail("takes {} values, {} stand above the mark", count, Above());
}

absl::StatusOr<std::vector<const PickleValue*>> PickleParser::PopToMark() {
  if (marks_.empty()) return Fail("there is no mark");
  std::vector<const Value*> values(stack_.begin() + static_cast<ptrdiff_t>(marks_.back()),
                                   stack_.end());
  stack_.resize(marks_.back());
  marks_.pop_back();
  return values;
}

absl::Status PickleParser::Step() {
  switch (opcode_) {
    case kPickleProto:
    case kPickleFrame:
      return StepFrame();
    case kPickleStop:
      return Finish();
    case kPickleMark:
      marks_.push_back(stack_.size());
      return absl::OkStatus();
    case kPickleNone:
      PushConstant(none_, PickleKind::kNone);
      return absl::OkStatus();
    case kPickleNewTrue:
      PushConstant(true_, PickleKind::kBool, 1);
      return absl::OkStatus();
    case kPickleNewFalse:
      PushConstant(false_, PickleKind::kBool, 0);
      return absl::OkStatus();
    case kPickleEmptyTuple:
      PushConstant(empty_, PickleKind::kTuple);
      return absl::OkStatus();
    case kPickleEmptyDict:
      stack_.push_back(New(PickleKind::kDict));
      stack_.back()->pairs = true;
      return absl::OkStatus();
    case kPickleEmptyList:
      stack_.push_back(New(PickleKind::kList));
      return absl::OkStatus();
    default:
      break;
  }
  switch (PickleOpcodeGroup(opcode_)) {
    case PickleGroup::kNumber:
      return StepNumber();
    case PickleGroup::kText:
      return StepText();
    case PickleGroup::kTuple:
      return StepTuple();
    case PickleGroup::kAppend:
      return StepAppend();
    case PickleGroup::kSet:
      return StepSet();
    case PickleGroup::kMemo:
      return StepMemo();
    case PickleGroup::kName:
      return StepName();
    case PickleGroup::kObject:
      return StepObject();
    case PickleGroup::kRefused:
      break;
  }
  return Fail("this opcode is refused: it is not among those that checkpoints are made of");
}

absl::Status PickleParser::StepFrame() {
  if (opcode_ == kPickleFrame) {
    ASSIGN_OR_RETURN(const uint64_t length, TakeUnsigned(8));
    if (length > input_.size() - at_)
      return Fail("a frame of {} bytes, {} follow: truncated", length, input_.size() - at_);
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const uint64_t protocol, TakeUnsigned(1));
  if (opcode_at_ != 0) return Fail("a second one");
  if (protocol < 2 || protocol > 5) return Fail("protocol {}; 2 to 5 are read", protocol);
  return absl::OkStatus();
}

absl::Status PickleParser::StepNumber() {
  if (opcode_ == kPickleBinFloat) {
    ASSIGN_OR_RETURN(const std::string_view raw, Take(8));
    uint64_t bits = 0;
    for (const char byte : raw) bits = bits << 8 | static_cast<uint8_t>(byte);
    Value* node = New(PickleKind::kFloat);
    node->real = std::bit_cast<double>(bits);
    stack_.push_back(node);
    return absl::OkStatus();
  }
  if (opcode_ == kPickleLong1) {
    ASSIGN_OR_RETURN(const uint64_t bytes, TakeUnsigned(1));
    if (bytes > 8) return Fail("an int of {} bytes; up to 8 are read", bytes);
    ASSIGN_OR_RETURN(uint64_t value, TakeUnsigned(static_cast<int>(bytes)));
    const bool negative = bytes > 0 && bytes < 8 && (value >> (8 * bytes - 1) & 1) != 0;
    if (negative) value |= ~uint64_t{0} << (8 * bytes);
    PushInt(static_cast<int64_t>(value));
    return absl::OkStatus();
  }
  const int bytes = opcode_ == kPickleBinInt ? 4 : opcode_ == kPickleBinInt2 ? 2 : 1;
  ASSIGN_OR_RETURN(const uint64_t value, TakeUnsigned(bytes));
  PushInt(bytes == 4 ? static_cast<int32_t>(static_cast<uint32_t>(value))
                     : static_cast<int64_t>(value));
  return absl::OkStatus();
}

absl::Status PickleParser::StepText() {
  const bool is_short = opcode_ == kPickleShortBinUnicode || opcode_ == kPickleShortBinBytes;
  const bool is_bytes = opcode_ == kPickleShortBinBytes || opcode_ == kPickleBinBytes;
  ASSIGN_OR_RETURN(const uint64_t length, TakeUnsigned(is_short ? 1 : 4));
  ASSIGN_OR_RETURN(const std::string_view text, Take(length));
  if (!is_bytes && !IsUtf8(text)) return Fail("a string that is not UTF-8");
  Value* node = New(is_bytes ? PickleKind::kBytes : PickleKind::kString);
  node->text = text;
  stack_.push_back(node);
  return absl::OkStatus();
}

absl::Status PickleParser::StepTuple() {
  if (opcode_ == kPickleTuple) {
    ASSIGN_OR_RETURN(std::vector<const Value*> items, PopToMark());
    Value* node = New(PickleKind::kTuple);
    node->items = std::move(items);
    stack_.push_back(node);
    return absl::OkStatus();
  }
  const size_t count = static_cast<size_t>(opcode_ - kPickleTuple1) + 1;
  RETURN_IF_ERROR(Need(count));
  Value* node = New(PickleKind::kTuple);
  node->items.assign(stack_.end() - static_cast<ptrdiff_t>(count), stack_.end());
  stack_.resize(stack_.size() - count);
  stack_.push_back(node);
  return absl::OkStatus();
}

absl::Status PickleParser::StepAppend() {
  std::vector<const Value*> values;
  if (opcode_ == kPickleAppends) {
    ASSIGN_OR_RETURN(values, PopToMark());
    RETURN_IF_ERROR(Need(1));
  } else {
    RETURN_IF_ERROR(Need(2));
    values.push_back(stack_.back());
    stack_.pop_back();
  }
  Value* target = stack_.back();
  const bool is_maker = target->kind == PickleKind::kCall || target->kind == PickleKind::kObject;
  if (target->kind != PickleKind::kList && (!is_maker || target->pairs))
    return Fail("{} has no append", DescribePickle(*target));
  target->items.insert(target->items.end(), values.begin(), values.end());
  return absl::OkStatus();
}

absl::Status PickleParser::StepSet() {
  std::vector<const Value*> values;
  if (opcode_ == kPickleSetItems) {
    ASSIGN_OR_RETURN(values, PopToMark());
    RETURN_IF_ERROR(Need(1));
    if (values.size() % 2 != 0) return Fail("{} keys and values: one is missing", values.size());
  } else {
    RETURN_IF_ERROR(Need(3));
    values.assign(stack_.end() - 2, stack_.end());
    stack_.resize(stack_.size() - 2);
  }
  Value* target = stack_.back();
  const bool is_maker = target->kind == PickleKind::kCall || target->kind == PickleKind::kObject;
  if (target->kind != PickleKind::kDict &&
      (!is_maker || (!target->pairs && !target->items.empty())))
    return Fail("{} has no items to set", DescribePickle(*target));
  if (!values.empty()) target->pairs = true;
  target->items.insert(target->items.end(), values.begin(), values.end());
  return absl::OkStatus();
}

absl::Status PickleParser::StepMemo() {
  const bool gets = opcode_ == kPickleBinGet || opcode_ == kPickleLongBinGet;
  const bool is_long = opcode_ == kPickleLongBinPut || opcode_ == kPickleLongBinGet;
  uint64_t index = memo_.size();
  if (opcode_ != kPickleMemoize) {
    ASSIGN_OR_RETURN(index, TakeUnsigned(is_long ? 4 : 1));
  }
  if (gets) {
    if (index >= memo_.size()) return Fail("memo {} was never put", index);
    stack_.push_back(memo_[index]);
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(Need(1));
  if (index != memo_.size())
    return Fail("memo {} where {} is the next: no pickler writes this", index, memo_.size());
  memo_.push_back(stack_.back());
  return absl::OkStatus();
}

absl::Status PickleParser::StepName() {
  std::string_view module, name;
  if (opcode_ == kPickleGlobal) {
    ASSIGN_OR_RETURN(module, TakeLine());
    ASSIGN_OR_RETURN(name, TakeLine());
  } else {
    RETURN_IF_ERROR(Need(2));
    const Value &first = *stack_[stack_.size() - 2], &second = *stack_.back();
    if (first.kind != PickleKind::kString || second.kind != PickleKind::kString)
      return Fail("{} and {} are to name something; two strings do", DescribePickle(first),
                  DescribePickle(second));
    module = first.text;
    name = second.text;
    stack_.resize(stack_.size() - 2);
  }
  if (!IsName(module) || !IsName(name)) return Fail("a name that is none");
  Value* node = New(PickleKind::kGlobal);
  node->text = module;
  node->name = name;
  stack_.push_back(node);
  return absl::OkStatus();
}

absl::Status PickleParser::StepObject() {
  if (opcode_ == kPickleBinPersId) {
    RETURN_IF_ERROR(Need(1));
    Value* node = New(PickleKind::kPersistentId);
    node->args = stack_.back();
    stack_.back() = node;
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(Need(2));
  Value* top = stack_.back();
  stack_.pop_back();
  Value* target = stack_.back();
  if (opcode_ == kPickleBuild) {
    if (target->kind != PickleKind::kCall && target->kind != PickleKind::kObject)
      return Fail("{} has no state", DescribePickle(*target));
    if (target->state != nullptr) return Fail("a second state");
    target->state = top;
    return absl::OkStatus();
  }
  if (target->kind != PickleKind::kGlobal)
    return Fail("{} is to be called; only what has a name is", DescribePickle(*target));
  if (top->kind != PickleKind::kTuple)
    return Fail("the arguments are {}, not a tuple", DescribePickle(*top));
  Value* node = New(opcode_ == kPickleReduce ? PickleKind::kCall : PickleKind::kObject);
  node->callee = target;
  node->args = top;
  stack_.back() = node;
  return absl::OkStatus();
}

absl::Status PickleParser::Finish() {
  if (!marks_.empty()) return Fail("{} marks are open", marks_.size());
  if (stack_.size() != 1) return Fail("{} values remain; one must", stack_.size());
  if (at_ != input_.size()) return Fail("{} bytes follow", input_.size() - at_);
  tree_.root_ = stack_.back();
  done_ = true;
  return absl::OkStatus();
}

absl::StatusOr<PickleTree> Unpickle(std::string bytes, std::string_view what) {
  return PickleParser(std::move(bytes), what).Parse();
}

namespace {

// Printable and short, whatever the bytes.
std::string Quoted(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text.substr(0, 64)) quoted += c >= ' ' && c < '\x7f' && c != '"' ? c : '?';
  return quoted + (text.size() > 64 ? "...\"" : "\"");
}

}  // namespace

std::string DescribePickle(const PickleValue& value) {
  switch (value.kind) {
    case PickleKind::kNone:
      return "None";
    case PickleKind::kBool:
      return value.integer != 0 ? "True" : "False";
    case PickleKind::kInt:
      return fmt::format("the int {}", value.integer);
    case PickleKind::kFloat:
      return fmt::format("the float {}", value.real);
    case PickleKind::kString:
      return "the str " + Quoted(value.text);
    case PickleKind::kBytes:
      return fmt::format("{} bytes", value.text.size());
    case PickleKind::kTuple:
      return fmt::format("a tuple of {}", value.items.size());
    case PickleKind::kList:
      return fmt::format("a list of {}", value.items.size());
    case PickleKind::kDict:
      return fmt::format("a dict of {}", value.items.size() / 2);
    case PickleKind::kGlobal:
      return fmt::format("{}.{}", value.text.substr(0, 64), value.name.substr(0, 64));
    case PickleKind::kCall:
      return fmt::format("a call of {}", DescribePickle(*value.callee));
    case PickleKind::kObject:
      return fmt::format("an object of {}", DescribePickle(*value.callee));
    case PickleKind::kPersistentId:
      return "a persistent id";
  }
  PERDURE_CHECK(false);
}

}  // namespace perdure
