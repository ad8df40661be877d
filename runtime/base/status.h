// absl::Status with {fmt} messages, and the two macros that hand an error to the caller.
//
// The code is chosen by what the caller will do: InvalidArgument (the user changes a file or a
// flag; exit 2), NotFound, DataLoss (a digest or a length is wrong), Unavailable (a peer or a
// device is gone), Aborted (somebody else won), Cancelled (it was told to stop),
// FailedPrecondition, ResourceExhausted, Internal. The message names the object, the value, what
// to try next.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace perdure {

template <typename... Args>
absl::Status ErrorStatus(absl::StatusCode code, fmt::format_string<Args...> format,
                         Args&&... args) {
  return absl::Status(code, fmt::format(format, std::forward<Args>(args)...));
}

#define PERDURE_DEFINE_ERROR(Name)                                                      \
  template <typename... Args>                                                           \
  absl::Status Name(fmt::format_string<Args...> format, Args&&... args) {               \
    return ErrorStatus(absl::StatusCode::k##Name, format, std::forward<Args>(args)...); \
  }
PERDURE_DEFINE_ERROR(InvalidArgument)
PERDURE_DEFINE_ERROR(NotFound)
PERDURE_DEFINE_ERROR(AlreadyExists)
PERDURE_DEFINE_ERROR(DataLoss)
PERDURE_DEFINE_ERROR(Unavailable)
PERDURE_DEFINE_ERROR(Aborted)
PERDURE_DEFINE_ERROR(Cancelled)
PERDURE_DEFINE_ERROR(FailedPrecondition)
PERDURE_DEFINE_ERROR(ResourceExhausted)
PERDURE_DEFINE_ERROR(Unimplemented)
PERDURE_DEFINE_ERROR(DeadlineExceeded)
PERDURE_DEFINE_ERROR(Internal)
#undef PERDURE_DEFINE_ERROR

// The message as a std::string: Debian 12's absl::string_view is not std::string_view.
inline std::string Message(const absl::Status& status) { return std::string(status.message()); }

// An operating system error: "<what>: <strerror> (errno N)", its code chosen from errno.
absl::Status ErrnoStatus(int error_number, std::string_view what);

}  // namespace perdure

#define PERDURE_CONCAT_INNER(a, b) a##b
#define PERDURE_CONCAT(a, b) PERDURE_CONCAT_INNER(a, b)

#define RETURN_IF_ERROR(expr)              \
  do {                                     \
    absl::Status perdure_status = (expr);  \
    if (!perdure_status.ok()) [[unlikely]] \
      return perdure_status;               \
  } while (false)

#define ASSIGN_OR_RETURN(lhs, expr) \
  ASSIGN_OR_RETURN_INNER(PERDURE_CONCAT(perdure_statusor_, __LINE__), lhs, expr)
#define ASSIGN_OR_RETURN_INNER(statusor, lhs, expr) \
  auto statusor = (expr);                           \
  if (!statusor.ok()) [[unlikely]]                  \
    return statusor.status();                       \
  lhs = *std::move(statusor)
