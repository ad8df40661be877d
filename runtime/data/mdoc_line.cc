#include "runtime/data/mdoc_line.h"

#include <algorithm>
#include <span>
#include <utility>

namespace perdure {
namespace {

struct Macro {
  std::string_view name, begin, end;
};
// Macros that enclose the rest of the line.
constexpr Macro kEnclosures[] = {{"Op", "[", "]"},   {"Pq", "(", ")"}, {"Bq", "[", "]"},
                                 {"Brq", "{", "}"},  {"Aq", "<", ">"}, {"Dq", "“", "”"},
                                 {"Qq", "\"", "\""}, {"Sq", "‘", "’"}, {"Ql", "‘", "’"}};
// Macros that stand for something by themselves: before what follows, or behind what was.
constexpr Macro kMarks[] = {{"Oo", "[", ""},      {"Oc", "", "]"},       {"Po", "(", ""},
                            {"Pc", "", ")"},      {"Bo", "[", ""},       {"Bc", "", "]"},
                            {"Do", "“", ""},      {"Dc", "", "”"},       {"Nd", "", "-"},
                            {"Ux", "", "UNIX"},   {"Bx", "", "BSD"},     {"Fx", "", "FreeBSD"},
                            {"Nx", "", "NetBSD"}, {"Ox", "", "OpenBSD"}, {"At", "", "AT&T UNIX"}};
// Macros that style what follows.
constexpr std::string_view kStyles[] = {"Ar", "Cm", "Ic", "Ev", "Pa", "Fa", "Va", "Vt", "Li", "Em",
                                        "Sy", "Er", "Dv", "Tn", "An", "Ad", "Lk", "Mt", "Ft", "Fn",
                                        "In", "Sx", "Dl", "No", "Ns", "Ap", "Pf", "Cd", "St", "Os",
                                        "Xo", "Xc", "Ta", "Fd", "Ms", "Nm", "Fl", "Xr"};

bool IsStyle(std::string_view word) {
  return std::find(std::begin(kStyles), std::end(kStyles), word) != std::end(kStyles);
}
const Macro* Find(std::span<const Macro> macros, std::string_view name) {
  const auto found = std::find_if(macros.begin(), macros.end(),
                                  [&](const Macro& macro) { return macro.name == name; });
  return found == macros.end() ? nullptr : &*found;
}
bool IsClosing(std::string_view word) {
  return word.size() == 1 && std::string_view(".,:;)]?!").find(word[0]) != std::string_view::npos;
}

}  // namespace

void MdocLineReader::Words(const std::vector<std::string>& words, TextWriter* writer) {
  std::string closing;  // What the enclosures of this line end with.
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    const Macro* const enclosure = Find(kEnclosures, word);
    const Macro* const mark = Find(kMarks, word);
    if (enclosure != nullptr) {
      writer->Append(enclosure->begin);
      closing.insert(0, enclosure->end);
    } else if (mark != nullptr) {
      if (word.ends_with('c')) writer->NoSpace();
      writer->Append(mark->begin);
      writer->Append(mark->end);
      if (mark->begin.empty()) writer->Space();
    } else if (word == "Fl") {
      const bool alone = i + 1 == words.size() || IsStyle(words[i + 1]) || IsClosing(words[i + 1]);
      writer->Append(alone ? "-" : "-" + words[++i]);
      writer->Space();
    } else if (word == "Xr" && i + 2 < words.size()) {
      writer->Append(words[i + 1] + "(" + words[i + 2] + ")");
      writer->Space();
      i += 2;
    } else if (word == "Nm" && (i + 1 == words.size() || IsStyle(words[i + 1]) ||
                                Find(kEnclosures, words[i + 1]) != nullptr)) {
      writer->Append(page_name_);
      writer->Space();
    } else if (word == "Ns" || word == "Ap") {
      writer->NoSpace();
      if (word == "Ap") writer->Append("'");
    } else if (!IsStyle(word)) {
      if (IsClosing(word)) {
        writer->NoSpace();
        if (i + 1 == words.size() && !closing.empty()) {
          writer->Append(std::exchange(closing, {}));
        }
      }
      writer->Append(word);
      writer->Space();
    }
  }
  if (!closing.empty()) {
    writer->NoSpace();
    writer->Append(closing);
  }
  writer->Space();
}

bool MdocLineReader::Block(std::string_view name, const std::vector<std::string>& arguments,
                           TextWriter* writer, bool* verbatim) {
  if (name == "Dd" || name == "Os" || name == "Sm" || name == "Bk" || name == "Ek" ||
      name == "Rs" || name == "Re")
    return true;
  if (name == "Dt") {
    if (arguments.size() >= 2) writer->Append(arguments[0] + "(" + arguments[1] + ")");
    writer->Break(2);
  } else if (name == "Sh" || name == "Ss") {
    writer->Break(2);
    Words(arguments, writer);
    writer->Break(1);
  } else if (name == "Pp" || name == "Lp" || name == "Bl" || name == "El") {
    writer->Break(2);
  } else if (name == "Bd" || name == "Ed") {
    *verbatim = name == "Bd" &&
                std::any_of(arguments.begin(), arguments.end(), [](const std::string& word) {
                  return word == "-literal" || word == "-unfilled";
                });
    writer->Break(2);
  } else if (name == "It") {
    writer->Break(1);
    Words(arguments, writer);
    if (!arguments.empty()) writer->Break(1);
  } else {
    return false;
  }
  return true;
}

bool MdocLineReader::Line(std::string_view name, const std::vector<std::string>& arguments,
                          TextWriter* writer, bool* verbatim) {
  if (Block(name, arguments, writer, verbatim)) return true;
  if (name == "Nm" && page_name_.empty() && !arguments.empty()) page_name_ = arguments[0];
  const bool known =
      IsStyle(name) || Find(kEnclosures, name) != nullptr || Find(kMarks, name) != nullptr;
  if (!known && !(name.size() == 2 && name[0] == '%')) return false;
  std::vector<std::string> words(arguments);
  if (known) words.insert(words.begin(), std::string(name));
  Words(words, writer);
  return true;
}

}  // namespace perdure
