// Collects extracted text: words joined by single spaces, lines and paragraphs by pending breaks.
// Private to runtime/data.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>

namespace perdure {

class TextWriter {
 public:
  // Text whose runs of ASCII white space are single spaces.
  void Append(std::string_view text) {
    while (!text.empty()) {
      const size_t word = std::min(text.find_first_of(" \t\n\r\f\v"), text.size());
      if (word > 0) Put(text.substr(0, word));
      text.remove_prefix(word);
      const size_t space = std::min(text.find_first_not_of(" \t\n\r\f\v"), text.size());
      if (space > 0) Space();
      text.remove_prefix(space);
    }
  }
  // Text as it is.
  void Verbatim(std::string_view text) {
    if (!text.empty()) Put(text);
  }
  void Space() { space_ = true; }
  void NoSpace() { space_ = false; }
  // At least this many newlines before what comes next: 1 a line, 2 a paragraph.
  void Break(int newlines) { newlines_ = std::max(newlines_, newlines); }

  size_t size() const { return text_.size(); }

  // The text, lines without trailing blanks, never two empty lines together, one newline at the
  // end.
  std::string Finish() const {
    std::string clean;
    clean.reserve(text_.size() + 1);
    std::string_view rest = text_;
    int empty = 1;  // So that no empty line comes first.
    while (!rest.empty()) {
      const size_t end = std::min(rest.find('\n'), rest.size());
      const std::string_view line = rest.substr(0, end);
      const size_t length = line.find_last_not_of(" \t\r\f\v") + 1;
      empty = length == 0 ? empty + 1 : 0;
      if (empty <= 1) clean.append(line.substr(0, length)).push_back('\n');
      rest.remove_prefix(std::min(end + 1, rest.size()));
    }
    while (clean.ends_with("\n\n")) clean.pop_back();
    return clean == "\n" ? std::string() : clean;
  }

 private:
  void Put(std::string_view text) {
    if (!text_.empty()) {
      if (newlines_ > 0)
        text_.append(static_cast<size_t>(newlines_), '\n');
      else if (space_)
        text_.push_back(' ');
    }
    newlines_ = 0;
    space_ = false;
    text_.append(text);
  }

  std::string text_;
  int newlines_ = 0;
  bool space_ = false;
};

}  // namespace perdure
