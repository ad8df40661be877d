#include "launch/slurm/hostlist.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <iterator>
#include <map>
#include <set>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr size_t kNameBytesMax = 255;
// More would not fit into 64 bits.
constexpr size_t kDigitsMax = 18;

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

bool IsNameCharacter(char c) {
  return IsDigit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || c == '_' ||
         c == '.';
}

uint64_t NumberOf(std::string_view digits) {
  uint64_t number = 0;
  std::from_chars(digits.data(), digits.data() + digits.size(), number);
  return number;
}

// `number` with at least `width` digits.
std::string Padded(uint64_t number, size_t width) {
  const std::string digits = std::to_string(number);
  return std::string(width > digits.size() ? width - digits.size() : 0, '0') + digits;
}

// One word of a list: text and brackets in turn, read from left to right; the last bracket varies
// fastest.
class Expander {
 public:
  Expander(std::string_view list, HostlistGrammar grammar) : list_(list), grammar_(grammar) {}

  absl::StatusOr<std::vector<std::string>> Run() {
    while (at_ < list_.size()) {
      if (IsSeparator(list_[at_]))
        ++at_;
      else
        RETURN_IF_ERROR(Word());
    }
    return std::move(names_);
  }

 private:
  static bool IsSeparator(char c) { return c == ',' || c == ' ' || c == '\t'; }

  absl::Status Bad(std::string_view why) const {
    constexpr size_t kAround = 40;
    const size_t begin = at_ > kAround ? at_ - kAround : 0;
    std::string part;
    for (const char c : list_.substr(begin, 2 * kAround)) part += c >= ' ' && c <= '~' ? c : '?';
    return InvalidArgument("the node list '{}{}{}' is wrong at character {}: {}",
                           begin > 0 ? "…" : "", part,
                           begin + 2 * kAround < list_.size() ? "…" : "", at_, why);
  }

  absl::Status Word() {
    std::vector<std::string> words = {""};
    size_t longest = 0;  // Of them, in bytes.
    bool brackets = false, ends_in_bracket = false;
    for (; at_ < list_.size() && !IsSeparator(list_[at_]); ++at_) {
      ends_in_bracket = list_[at_] == '[';
      if (ends_in_bracket) {
        ASSIGN_OR_RETURN(const std::vector<std::string> numbers, Bracket());
        if (words.size() * numbers.size() > kHostlistNamesMax - names_.size())
          return Bad(fmt::format("it has more than {} names", kHostlistNamesMax));
        std::vector<std::string> longer;
        longer.reserve(words.size() * numbers.size());
        for (const std::string& word : words)
          for (const std::string& number : numbers) longer.push_back(word + number);
        words = std::move(longer);
        longest +=
            std::max_element(numbers.begin(), numbers.end(), [](const auto& x, const auto& y) {
              return x.size() < y.size();
            })->size();
        brackets = true;
      } else if (IsNameCharacter(list_[at_])) {
        for (std::string& word : words) word += list_[at_];
        ++longest;
      } else {
        return Bad("this character is not part of a node's name");
      }
      if (longest > kNameBytesMax)
        return Bad(fmt::format("a name has more than {} bytes", kNameBytesMax));
    }
    if (brackets && !ends_in_bracket && grammar_ == HostlistGrammar::k22_05)
      return Bad("text behind the last bracket, which not every Slurm can read");
    if (words.size() > kHostlistNamesMax - names_.size())
      return Bad(fmt::format("it has more than {} names", kHostlistNamesMax));
    std::move(words.begin(), words.end(), std::back_inserter(names_));
    return absl::OkStatus();
  }

  // From '[' to ']', which at_ is left at.
  absl::StatusOr<std::vector<std::string>> Bracket() {
    std::vector<std::string> numbers;
    do {
      ++at_;
      ASSIGN_OR_RETURN(const std::string_view low, Digits());
      const uint64_t first = NumberOf(low);
      uint64_t last = first;
      if (at_ < list_.size() && list_[at_] == '-') {
        ++at_;
        ASSIGN_OR_RETURN(const std::string_view high, Digits());
        last = NumberOf(high);
        if (last < first) return Bad(fmt::format("the range {}-{} goes down", low, high));
      }
      if (last - first >= kHostlistNamesMax - numbers.size())
        return Bad(fmt::format("it has more than {} names", kHostlistNamesMax));
      for (uint64_t n = first; n <= last; ++n) numbers.push_back(Padded(n, low.size()));
    } while (at_ < list_.size() && list_[at_] == ',');
    if (at_ >= list_.size()) return Bad("a bracket is not closed");
    if (list_[at_] != ']') return Bad("in brackets stand numbers, ranges and commas");
    return numbers;
  }

  absl::StatusOr<std::string_view> Digits() {
    const size_t begin = at_;
    while (at_ < list_.size() && IsDigit(list_[at_])) ++at_;
    if (at_ == begin)
      return Bad(at_ < list_.size() ? "a number was expected" : "a bracket is not closed");
    if (at_ - begin > kDigitsMax) return Bad("a number is too long");
    return list_.substr(begin, at_ - begin);
  }

  const std::string_view list_;
  const HostlistGrammar grammar_;
  size_t at_ = 0;
  std::vector<std::string> names_;
};

// ---- names to a list

struct Run {
  uint64_t first = 0, last = 0;
  size_t width = 0;  // Of `first` as it is written.
};

// Neighbours of sorted numbers, joined.
std::vector<Run> RunsOf(const std::set<uint64_t>& numbers, size_t width) {
  std::vector<Run> runs;
  for (const uint64_t n : numbers) {
    if (!runs.empty() && runs.back().last + 1 == n)
      runs.back().last = n;
    else
      runs.push_back({n, n, std::max(width, std::to_string(n).size())});
  }
  return runs;
}

// The numbers that stand behind one text.
struct Numbers {
  std::set<uint64_t> plain;                     // Written without zeros in front.
  std::map<size_t, std::set<uint64_t>> padded;  // By width.
};

std::string Brackets(const Numbers& numbers) {
  std::vector<Run> runs = RunsOf(numbers.plain, 0);
  for (const auto& [width, members] : numbers.padded)
    for (Run run : RunsOf(members, width)) {
      // 08, 09 and 10 are one range: behind the last number with zeros come those without.
      const auto next = std::find_if(runs.begin(), runs.end(), [&](const Run& plain) {
        return plain.first == run.last + 1 && plain.width == run.width &&
               std::to_string(plain.first).size() == run.width;
      });
      if (next != runs.end()) {
        run.last = next->last;
        runs.erase(next);
      }
      runs.push_back(run);
    }
  std::sort(runs.begin(), runs.end(), [](const Run& a, const Run& b) {
    return std::pair(a.first, a.width) < std::pair(b.first, b.width);
  });
  std::string text;
  for (const Run& run : runs) {
    if (!text.empty()) text += ',';
    text += Padded(run.first, run.width);
    if (run.last > run.first) text += "-" + Padded(run.last, run.width);
  }
  const bool one = runs.size() == 1 && runs.front().first == runs.front().last;
  return one ? text : "[" + text + "]";
}

}  // namespace

bool IsNodeName(std::string_view name) {
  return !name.empty() && name.size() <= kNameBytesMax &&
         std::all_of(name.begin(), name.end(), IsNameCharacter);
}

absl::StatusOr<std::vector<std::string>> ExpandHostlist(std::string_view list,
                                                        HostlistGrammar grammar) {
  if (list == "(null)") return std::vector<std::string>();
  return Expander(list, grammar).Run();
}

std::string CompressHostlist(std::span<const std::string> names) {
  std::map<std::string, Numbers> numbered;  // By the text in front of the number.
  std::set<std::string> whole;
  for (const std::string& name : names) {
    PERDURE_CHECK(IsNodeName(name));
    size_t begin = name.size();
    while (begin > 0 && IsDigit(name[begin - 1]) && name.size() - begin < kDigitsMax) --begin;
    const std::string_view digits = std::string_view(name).substr(begin);
    if (digits.empty()) {
      whole.insert(name);
      continue;
    }
    Numbers& numbers = numbered[name.substr(0, begin)];
    if (digits.size() > 1 && digits.front() == '0')
      numbers.padded[digits.size()].insert(NumberOf(digits));
    else
      numbers.plain.insert(NumberOf(digits));
  }
  std::string list;
  const auto append = [&](const std::string& word) {
    if (!list.empty()) list += ',';
    list += word;
  };
  auto name = whole.begin();
  for (const auto& [text, numbers] : numbered) {
    for (; name != whole.end() && *name <= text; ++name) append(*name);
    append(text + Brackets(numbers));
  }
  for (; name != whole.end(); ++name) append(*name);
  return list;
}

}  // namespace perdure
