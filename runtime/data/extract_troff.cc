// Manual pages to text: what man(7), tables and the commonest of mdoc(7) put around words. Not a
// typesetter: requests that only move or style are dropped.
#include <algorithm>
#include <cctype>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/data/mdoc_line.h"
#include "runtime/data/text_extract.h"
#include "runtime/data/text_writer.h"
#include "runtime/data/troff_escapes.h"

namespace perdure {
namespace {

enum class Action {
  kDrop,
  kBreak,
  kParagraph,
  kTagged,    // The next line is the tag.
  kIndented,  // The first argument is the tag.
  kHeading,
  kTitle,
  kWords,   // Arguments with spaces between.
  kJoined,  // Arguments without.
  kOption,  // [-a argument].
  kVerbatim,
  kFilled,
  kTable,
  kTableEnd,
  kEquation,
  kDefine,
  kString,
  kLink,
  kLinkEnd,
  kIf,
  kIfElse,
  kElse,
};

const std::unordered_map<std::string_view, Action>& Actions() {
  static const auto* const actions = new std::unordered_map<std::string_view, Action>{
      {"br", Action::kBreak},     {"RS", Action::kBreak},       {"RE", Action::kBreak},
      {"INDENT", Action::kBreak}, {"UNINDENT", Action::kBreak}, {"YS", Action::kBreak},
      {"sp", Action::kParagraph}, {"PP", Action::kParagraph},   {"P", Action::kParagraph},
      {"LP", Action::kParagraph}, {"Sp", Action::kParagraph},   {"TP", Action::kTagged},
      {"TQ", Action::kTagged},    {"HP", Action::kParagraph},   {"IP", Action::kIndented},
      {"SH", Action::kHeading},   {"SS", Action::kHeading},     {"TH", Action::kTitle},
      {"B", Action::kWords},      {"I", Action::kWords},        {"SM", Action::kWords},
      {"SB", Action::kWords},     {"SY", Action::kWords},       {"BR", Action::kJoined},
      {"RB", Action::kJoined},    {"IR", Action::kJoined},      {"RI", Action::kJoined},
      {"BI", Action::kJoined},    {"IB", Action::kJoined},      {"OP", Action::kOption},
      {"nf", Action::kVerbatim},  {"EX", Action::kVerbatim},    {"Vb", Action::kVerbatim},
      {"fi", Action::kFilled},    {"EE", Action::kFilled},      {"Ve", Action::kFilled},
      {"TS", Action::kTable},     {"TE", Action::kTableEnd},    {"EQ", Action::kEquation},
      {"de", Action::kDefine},    {"de1", Action::kDefine},     {"am", Action::kDefine},
      {"am1", Action::kDefine},   {"ig", Action::kDefine},      {"ds", Action::kString},
      {"ds1", Action::kString},   {"UR", Action::kLink},        {"MT", Action::kLink},
      {"UE", Action::kLinkEnd},   {"ME", Action::kLinkEnd},     {"if", Action::kIf},
      {"ie", Action::kIfElse},    {"el", Action::kElse},        {"IX", Action::kDrop},
      {"PD", Action::kDrop},      {"DT", Action::kDrop},        {"UC", Action::kDrop},
      {"AT", Action::kDrop},      {"LINKSTYLE", Action::kDrop}, {"MTO", Action::kWords},
  };
  return *actions;
}

std::string_view TrimLeft(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of(" \t"), text.size()));
  return text;
}

std::string_view TakeLine(std::string_view* text) {
  const size_t end = std::min(text->find('\n'), text->size());
  std::string_view line = text->substr(0, end);
  text->remove_prefix(std::min(end + 1, text->size()));
  if (line.ends_with('\r')) line.remove_suffix(1);
  return line;
}

// Whether the newline behind `line` is escaped: an odd number of backslashes.
bool Continues(std::string_view line) {
  const size_t last = line.find_last_not_of('\\');
  const size_t count = line.size() - (last == std::string_view::npos ? 0 : last + 1);
  return count % 2 == 1;
}

class TroffReader {
 public:
  std::string Read(std::string_view page) {
    while (!page.empty()) {
      std::string line(TakeLine(&page));
      while (Continues(line) && !page.empty()) {
        line.pop_back();
        line.append(TakeLine(&page));
      }
      Line(line);
    }
    return writer_.Finish();
  }

 private:
  void Line(std::string_view line) {
    if (!ignored_until_.empty()) {
      if (line.starts_with(ignored_until_)) ignored_until_.clear();
      return;
    }
    if (false_blocks_ > 0) {
      CountBlocks(line);
      return;
    }
    const size_t before = writer_.size();
    const bool control = line.starts_with('.') || line.starts_with('\'');
    if (control)
      Control(TrimLeft(line.substr(1)));
    else if (table_format_)
      table_format_ = !line.ends_with('.');
    else if (in_table_)
      TableLine(line);
    else
      Text(line);
    if (pending_break_ && writer_.size() > before) {
      writer_.Break(1);
      pending_break_ = false;
    }
  }

  void Text(std::string_view line) {
    const std::string text = TroffUnescape(line, strings_);
    if (verbatim_) {
      if (line.empty()) {
        writer_.Break(2);
      } else {
        writer_.Break(1);
        writer_.Verbatim(text);
        writer_.Break(1);
      }
      return;
    }
    if (line.find_first_not_of(" \t") == std::string_view::npos) return writer_.Break(2);
    if (line.starts_with(' ') || line.starts_with('\t')) writer_.Break(1);
    writer_.Append(text);
    writer_.Space();
  }

  void TableLine(std::string_view line) {
    if (line.ends_with(';') && table_begins_) {
      const size_t tab = line.find("tab");
      if (tab != std::string_view::npos && tab + 4 < line.size() && line[tab + 3] == '(')
        table_tab_ = line[tab + 4];
      table_begins_ = false;
      table_format_ = true;
      return;
    }
    if (table_begins_) {
      table_begins_ = false;
      table_format_ = !line.ends_with('.');
      return;
    }
    if (line == "_" || line == "=" || line == "\\_") return;
    const bool continues = in_cell_ && !line.starts_with("T}");
    if (line.starts_with("T}")) line.remove_prefix(2);
    in_cell_ = line.ends_with("T{") || continues;
    if (line.ends_with("T{")) line.remove_suffix(2);
    std::string cells(line);
    std::replace(cells.begin(), cells.end(), table_tab_, ' ');
    writer_.Append(TroffUnescape(cells, strings_));
    writer_.Space();
    if (!in_cell_) writer_.Break(1);
  }

  void Control(std::string_view line) {
    const size_t name_end = std::min(line.find_first_of(" \t\\\""), line.size());
    const std::string_view name = line.substr(0, name_end);
    const std::string_view rest = TrimLeft(line.substr(name_end));
    if (name.empty()) return;
    if (name == "Dd") mdoc_.emplace();
    if (name == "T&") table_format_ = true;
    if (mdoc_.has_value() && mdoc_->Line(name, Arguments(rest), &writer_, &verbatim_)) return;
    const auto found = Actions().find(name);
    if (found != Actions().end()) return Perform(found->second, name, rest);
    // A macro of the page's own shows its arguments; a request (lower case) moves or styles.
    if (std::isupper(static_cast<unsigned char>(name[0]))) Words(Arguments(rest), " ");
  }

  void Perform(Action action, std::string_view name, std::string_view rest) {
    switch (action) {
      case Action::kDrop:
        return;
      case Action::kBreak:
        return writer_.Break(1);
      case Action::kParagraph:
        return writer_.Break(2);
      case Action::kTagged:
        writer_.Break(name == "TQ" ? 1 : 2);
        pending_break_ = true;
        return;
      case Action::kIndented:
        return Indented(Arguments(rest));
      case Action::kHeading:
        return Heading(Arguments(rest));
      case Action::kTitle:
        return Title(Arguments(rest));
      case Action::kWords:
        return Words(Arguments(rest), " ");
      case Action::kJoined:
        return Words(Arguments(rest), "");
      case Action::kOption:
        return Option(Arguments(rest));
      case Action::kVerbatim:
        verbatim_ = true;
        return writer_.Break(name == "nf" ? 1 : 2);
      case Action::kFilled:
        verbatim_ = false;
        return writer_.Break(name == "fi" ? 1 : 2);
      case Action::kTable:
        in_table_ = table_begins_ = true;
        table_format_ = in_cell_ = false;
        table_tab_ = '\t';
        return writer_.Break(2);
      case Action::kTableEnd:
        in_table_ = table_format_ = false;
        return writer_.Break(2);
      case Action::kEquation:
        ignored_until_ = ".EN";
        return;
      case Action::kDefine:
        return Define(name, Arguments(rest));
      case Action::kString:
        return DefineString(rest);
      case Action::kLink: {
        const std::vector<std::string> words = Arguments(rest);
        link_ = words.empty() ? "" : words[0];
        return;
      }
      case Action::kLinkEnd:
        return LinkEnd(Arguments(rest));
      case Action::kIf:
        (void)If(rest);
        return;
      case Action::kIfElse:
        if_results_.push_back(If(rest));
        return;
      case Action::kElse: {
        const bool taken = !if_results_.empty() && if_results_.back();
        if (!if_results_.empty()) if_results_.pop_back();
        return Branch(!taken, rest);
      }
    }
  }

  void Words(const std::vector<std::string>& words, std::string_view between) {
    for (size_t i = 0; i < words.size(); ++i) {
      if (i > 0) verbatim_ ? writer_.Verbatim(between) : writer_.Append(between);
      verbatim_ ? writer_.Verbatim(words[i]) : writer_.Append(words[i]);
    }
    if (verbatim_)
      writer_.Break(1);
    else
      writer_.Space();
  }

  void Option(std::vector<std::string> words) {
    if (words.empty()) return;
    words.front().insert(words.front().begin(), '[');
    words.back().push_back(']');
    Words(words, " ");
  }

  void Heading(const std::vector<std::string>& words) {
    verbatim_ = false;
    writer_.Break(2);
    pending_break_ = true;  // Also when the heading stands on the next line.
    Words(words, " ");
  }

  void Title(const std::vector<std::string>& words) {
    if (words.size() >= 2) writer_.Append(words[0] + "(" + words[1] + ")");
    writer_.Break(2);
  }

  void Indented(const std::vector<std::string>& words) {
    writer_.Break(2);
    if (words.empty() || words[0].empty()) return;
    writer_.Append(words[0]);
    constexpr size_t kBulletBytes = 4;  // "•", "-", "12.": the text goes on behind it.
    if (words[0].size() <= kBulletBytes)
      writer_.Space();
    else
      writer_.Break(1);
  }

  void LinkEnd(const std::vector<std::string>& words) {
    if (!link_.empty()) {
      writer_.Append("<");
      writer_.Append(link_);
      writer_.Append(">");
    }
    link_.clear();
    Words(words, " ");
  }

  void Define(std::string_view name, const std::vector<std::string>& words) {
    const size_t end = name == "ig" ? 0 : 1;  // Which argument names the end.
    ignored_until_ = words.size() > end ? "." + words[end] : "..";
  }

  void DefineString(std::string_view rest) {
    const size_t end = std::min(rest.find_first_of(" \t"), rest.size());
    std::string_view value = TrimLeft(rest.substr(end));
    if (value.starts_with('"')) value.remove_prefix(1);
    if (end > 0 && value.size() <= kStringBytesMax)
      strings_[std::string(rest.substr(0, end))] = value;
  }

  // Evaluates the condition that `rest` begins with for a typewriter-like device; returns it.
  bool If(std::string_view rest) {
    bool wanted = true;
    while (rest.starts_with('!')) {
      wanted = !wanted;
      rest.remove_prefix(1);
    }
    bool value = false;
    size_t used = std::min(rest.find_first_of(" \t"), rest.size());
    if (rest.starts_with('n') || rest.starts_with('t') || rest.starts_with('o') ||
        rest.starts_with('e')) {
      value = rest[0] == 'n' || rest[0] == 'o';
      used = 1;
    } else if (!rest.empty() && std::ispunct(static_cast<unsigned char>(rest[0])) &&
               rest[0] != '\\' && rest[0] != '(') {
      const size_t middle = std::min(rest.find(rest[0], 1), rest.size() - 1);  // 'one'other'
      const size_t end = std::min(rest.find(rest[0], middle + 1), rest.size() - 1);
      value =
          end > middle && rest.substr(1, middle - 1) == rest.substr(middle + 1, end - middle - 1);
      used = end + 1;
    } else {
      value = rest.starts_with("\\n(.g") || rest.starts_with("\\n[.g]") ||
              (!rest.empty() && rest[0] >= '1' && rest[0] <= '9');
    }
    Branch(value == wanted, TrimLeft(rest.substr(std::min(used, rest.size()))));
    return value == wanted;
  }

  void Branch(bool taken, std::string_view body) {
    body = TrimLeft(body);
    if (!taken) return CountBlocks(body);
    while (body.starts_with("\\{")) body = TrimLeft(body.substr(2));
    if (body.empty()) return;
    if (++depth_ <= kDepthMax) Line(body);
    --depth_;
  }

  // Follows \{ and \} of a branch that is not taken.
  void CountBlocks(std::string_view line) {
    for (size_t i = 0; i + 1 < line.size(); ++i) {
      if (line[i] != '\\') continue;
      ++i;
      if (line[i] == '{') ++false_blocks_;
      if (line[i] == '}') --false_blocks_;
    }
    false_blocks_ = std::max(false_blocks_, 0);
  }

  // Words, unescaped: "quoted with ""quotes""", or\ with escaped spaces.
  std::vector<std::string> Arguments(std::string_view rest) const {
    std::vector<std::string> words;
    size_t at = 0;
    while (true) {
      at = std::min(rest.find_first_not_of(" \t", at), rest.size());
      if (at == rest.size() || rest.substr(at, 2) == "\\\"") return words;
      const bool quoted = rest[at] == '"';
      std::string raw;
      for (at += quoted; at < rest.size(); ++at) {
        const char c = rest[at];
        if (c == '\\' && at + 1 < rest.size()) {
          raw.append(rest.substr(at++, 2));
        } else if (quoted && c == '"') {
          if (rest.substr(at, 2) != "\"\"") break;
          raw.push_back(rest[at++]);
        } else if (!quoted && (c == ' ' || c == '\t')) {
          break;
        } else {
          raw.push_back(c);
        }
      }
      at = std::min(at + quoted, rest.size());
      words.push_back(TroffUnescape(raw, strings_));
    }
  }

  static constexpr int kDepthMax = 32;             // Of .if on one line.
  static constexpr size_t kStringBytesMax = 1024;  // A longer one is no special character.

  TextWriter writer_;
  TroffStrings strings_;
  std::optional<MdocLineReader> mdoc_;  // For a page that begins with .Dd.
  std::string ignored_until_;           // Inside a definition: the request that ends it.
  std::string link_;
  std::vector<bool> if_results_;  // Of .ie, for their .el.
  int false_blocks_ = 0;
  int depth_ = 0;
  bool verbatim_ = false;
  bool pending_break_ = false;  // Behind the line that comes next.
  bool in_table_ = false, table_begins_ = false, table_format_ = false, in_cell_ = false;
  char table_tab_ = '\t';
};

}  // namespace

std::string TroffToText(std::string_view page) { return TroffReader().Read(page); }

}  // namespace perdure
