#include "runtime/base/check.h"

#include <cstdio>
#include <cstdlib>

namespace perdure {

void CheckFailed(std::string_view file, int line, std::string_view fact) {
  std::fprintf(stderr, "%.*s:%d: CHECK failed: %.*s\n", static_cast<int>(file.size()), file.data(),
               line, static_cast<int>(fact.size()), fact.data());
  std::abort();
}

}  // namespace perdure
