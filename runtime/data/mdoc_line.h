// The commonest macros of mdoc(7), a line at a time. Private to runtime/data.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "runtime/data/text_writer.h"

namespace perdure {

class MdocLineReader {
 public:
  // Writes what `.name arguments` shows; `verbatim` follows .Bd and .Ed. False when mdoc has no
  // such macro.
  bool Line(std::string_view name, const std::vector<std::string>& arguments, TextWriter* writer,
            bool* verbatim);

 private:
  bool Block(std::string_view name, const std::vector<std::string>& arguments, TextWriter* writer,
             bool* verbatim);
  void Words(const std::vector<std::string>& words, TextWriter* writer);

  std::string page_name_;  // Of the first .Nm: the later ones need not repeat it.
};

}  // namespace perdure
