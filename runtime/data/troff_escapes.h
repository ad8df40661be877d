// Escape sequences of troff (groff(7)): fonts, sizes and motions go, special characters and strings
// become text. Private to runtime/data.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>

namespace perdure {

using TroffStrings =
    std::map<std::string, std::string, std::less<>>;  // What a page defined by .ds.

// A line, or an argument, as text. A comment (\") ends it.
std::string TroffUnescape(std::string_view text, const TroffStrings& strings);

}  // namespace perdure
