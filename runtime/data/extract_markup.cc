// HTML, XHTML and Mallard pages to text: a tolerant reader of tags, no tree.
#include <algorithm>
#include <cctype>
#include <string>
#include <string_view>

#include "runtime/data/html_entities.h"
#include "runtime/data/text_extract.h"
#include "runtime/data/text_writer.h"

namespace perdure {
namespace {

using Names = std::initializer_list<std::string_view>;

bool IsOneOf(std::string_view name, Names names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// Nothing inside is text of the page. `info` and `links` are Mallard's.
bool IsSkipped(std::string_view name) {
  return IsOneOf(name,
                 {"head", "nav", "header", "footer", "aside", "noscript", "template", "svg", "math",
                  "button", "select", "textarea", "iframe", "object", "info", "links"});
}
// DocBook's page navigation; the Macintosh half of LibreOffice's pairs of keys.
bool IsSkippedClass(std::string_view word) {
  return IsOneOf(word, {"navheader", "navfooter", "MAC"});
}

bool IsParagraph(std::string_view name) {
  return IsOneOf(name,
                 {"p",      "h1",         "h2",    "h3",    "h4",   "h5",      "h6",      "pre",
                  "screen", "blockquote", "table", "ul",    "ol",   "dl",      "section", "article",
                  "page",   "steps",      "list",  "terms", "note", "example", "figure",  "title"});
}
bool IsLine(std::string_view name) {
  return IsOneOf(name, {"div", "li", "item", "tr", "br", "dt", "dd", "hr", "caption", "address",
                        "main", "body"});
}
bool IsVerbatim(std::string_view name) { return IsOneOf(name, {"pre", "screen"}); }

struct Tag {
  std::string name;  // Lower case, without a namespace.
  bool closes = false;
  bool closes_itself = false;
  bool is_skipped = false;
};

class MarkupReader {
 public:
  explicit MarkupReader(std::string_view page) : rest_(page) {}

  std::string Read() {
    while (!rest_.empty()) {
      const size_t text = std::min(rest_.find('<'), rest_.size());
      if (text > 0) {
        Text(rest_.substr(0, text));
        rest_.remove_prefix(text);
      } else if (!SkipDeclaration() && !ReadTag()) {
        Text("<");
        rest_.remove_prefix(1);
      }
    }
    return writer_.Finish();
  }

 private:
  void Text(std::string_view raw) {
    if (!skipped_.empty()) return;
    std::string text;
    while (!raw.empty()) {
      const size_t plain = std::min(raw.find('&'), raw.size());
      text.append(raw.substr(0, plain));
      raw.remove_prefix(plain);
      if (raw.empty()) break;
      const size_t used = AppendHtmlEntity(raw, &text);
      if (used == 0) text.push_back('&');
      raw.remove_prefix(std::max<size_t>(used, 1));
    }
    if (verbatim_ > 0)
      writer_.Verbatim(text);
    else
      writer_.Append(text);
  }

  // Comments, CDATA, DOCTYPE, processing instructions.
  bool SkipDeclaration() {
    struct Form {
      std::string_view begin, end;
    };
    constexpr Form kForms[] = {{"<!--", "-->"}, {"<![CDATA[", "]]>"}, {"<!", ">"}, {"<?", ">"}};
    for (const Form& form : kForms) {
      if (!rest_.starts_with(form.begin)) continue;
      const size_t end = rest_.find(form.end, form.begin.size());
      if (end == std::string_view::npos) {
        rest_ = {};  // Never closed: nothing behind it is text.
        return true;
      }
      if (form.end == "]]>" && skipped_.empty())
        writer_.Append(rest_.substr(form.begin.size(), end - form.begin.size()));
      rest_.remove_prefix(end + form.end.size());
      return true;
    }
    return false;
  }

  // Reads the tag that rest_ begins with. False, and nothing read, when it is none.
  bool ReadTag() {
    size_t at = 1;
    Tag tag;
    if (at < rest_.size() && rest_[at] == '/') {
      tag.closes = true;
      ++at;
    }
    if (at >= rest_.size() || !std::isalpha(static_cast<unsigned char>(rest_[at]))) return false;
    while (at < rest_.size() && rest_[at] != '>' && rest_[at] != '/' && !IsSpace(rest_[at])) {
      tag.name.push_back(static_cast<char>(std::tolower(static_cast<unsigned char>(rest_[at]))));
      if (rest_[at++] == ':') tag.name.clear();
    }
    const size_t end = ReadAttributes(at, &tag);
    if (end == std::string_view::npos) return false;
    rest_.remove_prefix(end);
    Apply(tag);
    return true;
  }

  // From behind the name to behind the '>'; npos when there is none.
  size_t ReadAttributes(size_t at, Tag* tag) {
    if (unclosed_tags_ > kUnclosedTagsMax) return std::string_view::npos;
    tag->is_skipped = IsSkipped(tag->name);
    size_t name_begin = at;
    while (at < rest_.size() && rest_[at] != '>') {
      if (rest_[at] == '"' || rest_[at] == '\'') {
        const size_t close = rest_.find(rest_[at], at + 1);
        if (close == std::string_view::npos) break;
        Attribute(rest_.substr(name_begin, at - name_begin), rest_.substr(at + 1, close - at - 1),
                  tag);
        at = name_begin = close + 1;
      } else {
        ++at;
      }
    }
    if (at >= rest_.size() || rest_[at] != '>') {
      ++unclosed_tags_;
      return std::string_view::npos;
    }
    tag->closes_itself = rest_[at - 1] == '/';
    return at + 1;
  }

  static void Attribute(std::string_view name, std::string_view value, Tag* tag) {
    const size_t first = name.find_first_not_of(" \t\r\n");
    if (first == std::string_view::npos || name.substr(first) != "class=") return;
    while (!value.empty()) {
      const size_t word = std::min(value.find(' '), value.size());
      if (IsSkippedClass(value.substr(0, word))) tag->is_skipped = true;
      value.remove_prefix(std::min(word + 1, value.size()));
    }
  }

  void Apply(const Tag& tag) {
    if (!tag.closes && !tag.closes_itself && (tag.name == "script" || tag.name == "style"))
      return SkipRaw(tag.name);
    if (!skipped_.empty()) {
      if (skipped_ == "head" && tag.name == "body") skipped_.clear();  // </head> may be left out.
      if (tag.name == skipped_ && !tag.closes_itself) skipped_depth_ += tag.closes ? -1 : 1;
      if (skipped_depth_ == 0) skipped_.clear();
      return;
    }
    if (tag.is_skipped && !tag.closes) {
      if (tag.closes_itself) return;
      skipped_ = tag.name;
      skipped_depth_ = 1;
      return;
    }
    if (IsParagraph(tag.name))
      writer_.Break(2);
    else if (IsLine(tag.name))
      writer_.Break(1);
    else if (tag.name == "td" || tag.name == "th")
      writer_.Space();
    if (IsVerbatim(tag.name) && !tag.closes_itself)
      verbatim_ = std::max(0, verbatim_ + (tag.closes ? -1 : 1));
  }

  // Content in which '<' means nothing, up to its end tag.
  void SkipRaw(const std::string& name) {
    for (size_t at = rest_.find("</"); at != std::string_view::npos;
         at = rest_.find("</", at + 2)) {
      const std::string_view found = rest_.substr(at + 2, name.size());
      const bool equal = std::equal(
          found.begin(), found.end(), name.begin(), name.end(),
          [](char a, char b) { return std::tolower(static_cast<unsigned char>(a)) == b; });
      if (!equal) continue;
      rest_.remove_prefix(std::min(rest_.find('>', at), rest_.size() - 1) + 1);
      return;
    }
    rest_ = {};
  }

  static bool IsSpace(char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; }

  // A '<' whose tag never ends costs a look at the whole rest: after so many of them all '<' are
  // text.
  static constexpr int kUnclosedTagsMax = 16;

  std::string_view rest_;
  TextWriter writer_;
  std::string skipped_;  // The element whose content is being skipped; empty: none.
  int skipped_depth_ = 0;
  int verbatim_ = 0;
  int unclosed_tags_ = 0;
};

}  // namespace

std::string MarkupToText(std::string_view page) { return MarkupReader(page).Read(); }

}  // namespace perdure
