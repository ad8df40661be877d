// CHECK: a programmer's error ends the process, in release builds too, with the place and the fact.
//
// Expected trouble (a lost peer, a full disk, a wrong file) is an absl::Status instead.
#pragma once

#include <string_view>

namespace perdure {

[[noreturn]] void CheckFailed(std::string_view file, int line, std::string_view fact);

}  // namespace perdure

#define PERDURE_CHECK(fact)                              \
  do {                                                   \
    if (!(fact)) [[unlikely]]                            \
      ::perdure::CheckFailed(__FILE__, __LINE__, #fact); \
  } while (false)
