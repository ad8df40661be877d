#include "runtime/agent/log_reader.h"

#include <utility>

#include "runtime/base/status.h"

namespace perdure {

absl::StatusOr<std::shared_ptr<const RunLog>> LogReader::Read() {
  const std::lock_guard lock(mutex_);
  if (log_.has_value()) {
    RETURN_IF_ERROR(log_->Refresh());
  } else {
    ASSIGN_OR_RETURN(log_, RunLog::Open(run_directory_));
  }
  if (newest_ == nullptr || newest_->next_slot() != log_->next_slot())
    newest_ = std::make_shared<const RunLog>(*log_);
  return newest_;
}

}  // namespace perdure
