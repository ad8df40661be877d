#include "runtime/data/troff_escapes.h"

#include <algorithm>
#include <charconv>

#include "runtime/data/utf8.h"

namespace perdure {
namespace {

struct Special {
  std::string_view name, text;
};

// groff_char(7), sorted by name.
// clang-format off
constexpr Special kSpecials[] = {
    {"!=", "≠"}, {"'A", "Á"}, {"'C", "Ć"}, {"'E", "É"}, {"'I", "Í"}, {"'N", "Ń"}, {"'O", "Ó"},
    {"'S", "Ś"}, {"'U", "Ú"}, {"'Y", "Ý"}, {"'Z", "Ź"}, {"'a", "á"}, {"'c", "ć"}, {"'e", "é"},
    {"'i", "í"}, {"'n", "ń"}, {"'o", "ó"}, {"'s", "ś"}, {"'u", "ú"}, {"'y", "ý"}, {"'z", "ź"},
    {"**", "∗"}, {"*D", "Δ"}, {"*F", "Φ"}, {"*G", "Γ"}, {"*H", "Θ"}, {"*L", "Λ"}, {"*P", "Π"},
    {"*S", "Σ"}, {"*W", "Ω"}, {"*a", "α"}, {"*b", "β"}, {"*c", "ξ"}, {"*d", "δ"}, {"*e", "ε"},
    {"*f", "φ"}, {"*g", "γ"}, {"*h", "θ"}, {"*i", "ι"}, {"*k", "κ"}, {"*l", "λ"}, {"*m", "μ"},
    {"*n", "ν"}, {"*o", "ο"}, {"*p", "π"}, {"*q", "ψ"}, {"*r", "ρ"}, {"*s", "σ"}, {"*t", "τ"},
    {"*u", "υ"}, {"*w", "ω"}, {"*x", "χ"}, {"*y", "η"}, {"*z", "ζ"}, {"+-", "±"}, {",C", "Ç"},
    {",N", "Ņ"}, {",S", "Ş"}, {",c", "ç"}, {",n", "ņ"}, {",s", "ş"}, {"->", "→"}, {"-D", "Ð"},
    {".i", "ı"}, {"/L", "Ł"}, {"/O", "Ø"}, {"/l", "ł"}, {"/o", "ø"}, {"12", "½"}, {"14", "¼"},
    {"34", "¾"}, {":A", "Ä"}, {":E", "Ë"}, {":I", "Ï"}, {":O", "Ö"}, {":U", "Ü"}, {":Y", "Ÿ"},
    {":a", "ä"}, {":e", "ë"}, {":i", "ï"}, {":o", "ö"}, {":u", "ü"}, {":y", "ÿ"}, {"<-", "←"},
    {"<=", "≤"}, {"<>", "↔"}, {"==", "≡"}, {">=", "≥"}, {"AE", "Æ"}, {"Bq", "„"}, {"Cs", "¤"},
    {"Do", "$"}, {"Eu", "€"}, {"Fc", "»"}, {"Fo", "«"}, {"IJ", "Ĳ"}, {"OE", "Œ"}, {"OK", "✓"},
    {"Of", "ª"}, {"Om", "º"}, {"Po", "£"}, {"S1", "¹"}, {"S2", "²"}, {"S3", "³"}, {"Sd", "ð"},
    {"TP", "Þ"}, {"Tp", "þ"}, {"Ye", "¥"}, {"^A", "Â"}, {"^C", "Ĉ"}, {"^E", "Ê"}, {"^I", "Î"},
    {"^O", "Ô"}, {"^S", "Ŝ"}, {"^U", "Û"}, {"^Y", "Ŷ"}, {"^a", "â"}, {"^c", "ĉ"}, {"^e", "ê"},
    {"^i", "î"}, {"^o", "ô"}, {"^s", "ŝ"}, {"^u", "û"}, {"^y", "ŷ"}, {"`A", "À"}, {"`E", "È"},
    {"`I", "Ì"}, {"`O", "Ò"}, {"`U", "Ù"}, {"`a", "à"}, {"`e", "è"}, {"`i", "ì"}, {"`o", "ò"},
    {"`u", "ù"}, {"a^", "^"}, {"aa", "´"}, {"ad", "¨"}, {"ae", "æ"}, {"an", "∧"}, {"ap", "∼"},
    {"aq", "'"}, {"at", "@"}, {"a~", "~"}, {"ba", "|"}, {"bq", "‚"}, {"br", "│"}, {"bu", "•"},
    {"bv", "|"}, {"char176", "°"}, {"ci", "○"}, {"co", "©"}, {"cq", "’"}, {"ct", "¢"}, {"da", "↓"},
    {"dd", "‡"}, {"de", "°"}, {"dg", "†"}, {"di", "÷"}, {"dq", "\""}, {"em", "—"}, {"en", "–"},
    {"eq", "="}, {"es", "∅"}, {"eu", "€"}, {"fa", "∀"}, {"fc", "›"}, {"fm", "′"}, {"fo", "‹"},
    {"ga", "`"}, {"hA", "⇔"}, {"ha", "^"}, {"hy", "-"}, {"if", "∞"}, {"ij", "ĳ"}, {"is", "∫"},
    {"lA", "⇐"}, {"lB", "["}, {"lC", "{"}, {"la", "⟨"}, {"lh", "☜"}, {"lq", "“"}, {"lz", "◊"},
    {"mc", "µ"}, {"md", "·"}, {"mi", "−"}, {"mo", "∈"}, {"mu", "×"}, {"nm", "∉"}, {"no", "¬"},
    {"oA", "Å"}, {"oa", "å"}, {"oe", "œ"}, {"oq", "‘"}, {"or", "|"}, {"pc", "·"}, {"pd", "∂"},
    {"pl", "+"}, {"ps", "¶"}, {"r!", "¡"}, {"r?", "¿"}, {"rA", "⇒"}, {"rB", "]"}, {"rC", "}"},
    {"ra", "⟩"}, {"rg", "®"}, {"rh", "☞"}, {"rq", "”"}, {"rs", "\\"}, {"ru", "_"}, {"sc", "§"},
    {"sd", "″"}, {"sh", "#"}, {"sl", "/"}, {"sq", "□"}, {"sr", "√"}, {"ss", "ß"}, {"te", "∃"},
    {"ti", "~"}, {"tm", "™"}, {"tno", "¬"}, {"ua", "↑"}, {"ul", "_"}, {"vC", "Č"}, {"vE", "Ě"},
    {"vN", "Ň"}, {"vS", "Š"}, {"vZ", "Ž"}, {"vc", "č"}, {"ve", "ě"}, {"vn", "ň"}, {"vs", "š"},
    {"vz", "ž"}, {"~=", "≈"}, {"~A", "Ã"}, {"~I", "Ĩ"}, {"~N", "Ñ"}, {"~O", "Õ"}, {"~U", "Ũ"},
    {"~a", "ã"}, {"~i", "ĩ"}, {"~n", "ñ"}, {"~o", "õ"}, {"~u", "ũ"},
};
// clang-format on
static_assert(std::is_sorted(std::begin(kSpecials), std::end(kSpecials),
                             [](const Special& a, const Special& b) { return a.name < b.name; }));

// Strings that macro packages define: an(7), mdoc(7).
constexpr Special kStrings[] = {
    {"Aq", "'"}, {"lq", "\u201C"}, {"rq", "\u201D"}, {"R", "\u00AE"}, {"Tm", "\u2122"}};

constexpr int kStringDepthMax = 4;  // Strings may name strings, and themselves.

class Unescaper {
 public:
  Unescaper(std::string_view text, const TroffStrings& strings, int depth)
      : rest_(text), strings_(strings), depth_(depth) {}

  std::string Run() {
    while (!rest_.empty()) {
      const size_t plain = std::min(rest_.find('\\'), rest_.size());
      out_.append(rest_.substr(0, plain));
      rest_.remove_prefix(plain);
      if (rest_.empty()) break;
      rest_.remove_prefix(1);
      if (!rest_.empty()) Escape(Take(1)[0]);
    }
    return std::move(out_);
  }

 private:
  void Escape(char c) {
    switch (c) {
      case '(':
        return Named(Take(2));
      case '[':
        return Named(TakeUntil(']'));
      case 'C':
        return Named(TakeQuoted());
      case '*':
        return String(TakeName());
      case 'N':
        return Number(TakeQuoted());
      case 'f':
      case 'F':
      case 'g':
      case 'k':
      case 'm':
      case 'M':
      case 'n':
      case 'O':
      case 'V':
      case 'Y':
        (void)TakeName();
        return;
      case 's':
        return Size();
      case 'A':
      case 'b':
      case 'B':
      case 'D':
      case 'h':
      case 'H':
      case 'l':
      case 'L':
      case 'o':
      case 'R':
      case 'S':
      case 'v':
      case 'w':
      case 'x':
      case 'X':
      case 'Z':
        (void)TakeQuoted();
        return;
      case ' ':
      case '~':
      case '0':
        out_.push_back(' ');
        return;
      case 'e':
      case 'E':
        out_.push_back('\\');
        return;
      case 't':
        out_.push_back('\t');
        return;
      case '\'':
        return Named("aa");
      case '"':
      case '#':
        rest_ = {};
        return;  // A comment.
      default:
        break;
    }
    constexpr std::string_view kInvisible = "&)%:/,|^!{}pdurzac?";
    if (kInvisible.find(c) == std::string_view::npos) out_.push_back(c);
  }

  void Named(std::string_view name) {
    const auto* found =
        std::lower_bound(std::begin(kSpecials), std::end(kSpecials), name,
                         [](const Special& a, std::string_view b) { return a.name < b; });
    if (found != std::end(kSpecials) && found->name == name) {
      out_.append(found->text);
    } else if (name.size() >= 5 && name.starts_with('u')) {
      uint32_t code = 0;
      const auto parsed = std::from_chars(name.data() + 1, name.data() + name.size(), code, 16);
      if (parsed.ec == std::errc() && code >= 0x20) AppendUtf8(code, &out_);
    }
  }

  void String(std::string_view name) {
    const auto own = strings_.find(name);
    if (own != strings_.end()) {
      if (depth_ < kStringDepthMax) out_.append(Unescaper(own->second, strings_, depth_ + 1).Run());
      return;
    }
    for (const Special& known : kStrings)
      if (known.name == name) out_.append(known.text);
  }

  void Number(std::string_view digits) {
    uint32_t code = 0;
    std::from_chars(digits.data(), digits.data() + digits.size(), code);
    if (code >= 0x20) AppendUtf8(code, &out_);
  }

  // \s8, \s-2, \s12, \s(12, \s[12], \s'12'.
  void Size() {
    if (rest_.starts_with('+') || rest_.starts_with('-')) Take(1);
    if (rest_.starts_with('(') || rest_.starts_with('[')) {
      (void)TakeName();
    } else if (rest_.starts_with('\'')) {
      (void)TakeQuoted();
    } else {
      const bool two = rest_.size() > 1 && rest_[0] >= '1' && rest_[0] <= '3' && rest_[1] >= '0' &&
                       rest_[1] <= '9';
      Take(two ? 2 : 1);
    }
  }

  std::string_view Take(size_t count) {
    const std::string_view taken = rest_.substr(0, count);
    rest_.remove_prefix(taken.size());
    return taken;
  }
  std::string_view TakeUntil(char end) {
    const std::string_view taken = Take(std::min(rest_.find(end), rest_.size()));
    Take(1);
    return taken;
  }
  std::string_view TakeName() {
    if (rest_.starts_with('+') || rest_.starts_with('-')) Take(1);
    const std::string_view first = Take(1);
    if (first == "(") return Take(2);
    if (first == "[") return TakeUntil(']');
    return first;
  }
  std::string_view TakeQuoted() {
    if (rest_.empty()) return {};
    const char quote = Take(1)[0];
    return TakeUntil(quote);
  }

  std::string_view rest_;
  const TroffStrings& strings_;
  int depth_;
  std::string out_;
};

}  // namespace

std::string TroffUnescape(std::string_view text, const TroffStrings& strings) {
  return Unescaper(text, strings, 0).Run();
}

}  // namespace perdure
