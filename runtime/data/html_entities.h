// Character references of HTML and XML. Private to runtime/data.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace perdure {

// `text` begins with '&'. Appends the character that the reference there names and returns its
// length in `text`; 0, and nothing appended, when it is none. A number that names no printable
// character gives U+FFFD.
size_t AppendHtmlEntity(std::string_view text, std::string* out);

}  // namespace perdure
