// Which of Slurm's reasons for a pending job never goes away by itself, and what helps.
#pragma once

#include <string>
#include <string_view>

namespace perdure {

// What to do about a job that is pending for that reason (JobView::reason) and never starts unless
// somebody does something. Empty: it will, or the reason is not known here.
std::string AdviceFor(std::string_view reason);

// Whether somebody holds it, or Slurm itself since it could not be started.
bool IsHeld(std::string_view reason);

}  // namespace perdure
