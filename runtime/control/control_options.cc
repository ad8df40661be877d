#include "runtime/control/control_options.h"

#include <utility>

#include "runtime/base/status.h"

namespace perdure {

FailureDetector::Options DetectorOptions(const ControlOptions& o) {
  FailureDetector::Options options;
  options.heartbeat_interval = o.heartbeat;
  options.silence_max = o.node_silence;
  options.silence_after_close_max = o.close_silence;
  options.stall_min = o.stall_min;
  options.stall_factor = static_cast<int>(o.stall_factor);
  options.first_step_max = o.first_step_max;
  return options;
}

SlowRanks::Options SlowRanksOptions(const ControlOptions& o) {
  return {.window = o.slow_window,
          .ratio_percent = o.slow_percent,
          .clear_percent = o.slow_clear_percent};
}

absl::Status Validate(const ControlOptions& o) {
  const std::pair<const char*, absl::Duration> positive[] = {{"heartbeat", o.heartbeat},
                                                             {"lease_agent", o.lease_agent},
                                                             {"lease_support", o.lease_support},
                                                             {"lease_log", o.lease_log},
                                                             {"poll", o.poll},
                                                             {"seek", o.seek},
                                                             {"leader_silence", o.leader_silence},
                                                             {"stagger", o.stagger},
                                                             {"node_silence", o.node_silence},
                                                             {"close_silence", o.close_silence},
                                                             {"stall_min", o.stall_min},
                                                             {"first_step_max", o.first_step_max},
                                                             {"gather", o.gather},
                                                             {"gather_again", o.gather_again},
                                                             {"stop_max", o.stop_max},
                                                             {"form_max", o.form_max},
                                                             {"resend", o.resend},
                                                             {"append_retry", o.append_retry},
                                                             {"save_every", o.save_every},
                                                             {"save_max", o.save_max},
                                                             {"slow_retry", o.slow_retry}};
  for (const auto& [name, duration] : positive)
    if (duration <= absl::ZeroDuration() || duration >= absl::Hours(24 * 365))
      return InvalidArgument("control option {} is {} s: it must be positive and below a year",
                             name, absl::ToDoubleSeconds(duration));
  if (o.visibility < absl::ZeroDuration())
    return InvalidArgument("control option visibility is negative");
  if (o.slow_window < absl::ZeroDuration() || o.slow_window > absl::Hours(24))
    return InvalidArgument("control option slow_window is {} s: 0 (nobody is looked at) to a day",
                           absl::ToDoubleSeconds(o.slow_window));
  if (o.slow_percent < 110 || o.slow_percent > 10000 || o.slow_clear_percent < 100 ||
      o.slow_clear_percent >= o.slow_percent)
    return InvalidArgument(
        "control options slow_percent and slow_clear_percent are {} and {}: 110 to 10000, and 100 "
        "to below that",
        o.slow_percent, o.slow_clear_percent);
  if (o.drift_percent < 0 || o.drift_percent > 20)
    return InvalidArgument("control option drift_percent is {}: 0 to 20", o.drift_percent);
  if (o.table_fan_out < 1 || o.table_fan_out > 1024 || o.stagger_max < 0 || o.stagger_max > 1024)
    return InvalidArgument(
        "control options table_fan_out and stagger_max are {} and {}: 1 and 0 to 1024",
        o.table_fan_out, o.stagger_max);
  if (o.done_code < 0 || o.done_code > 255)
    return InvalidArgument("control option done_code is {}: exit codes are 0 to 255", o.done_code);
  // Otherwise a lease would end between two answers that nobody lost. Support is counted in rounds
  // of about two heartbeats: below four a lease, steps wait for it now and then.
  if (o.lease_agent < 2 * o.heartbeat || o.lease_support < 2 * o.heartbeat)
    return InvalidArgument(
        "leases of {} and {} s with a heartbeat of {} s: a lease must last two of them",
        absl::ToDoubleSeconds(o.lease_agent), absl::ToDoubleSeconds(o.lease_support),
        absl::ToDoubleSeconds(o.heartbeat));
  RETURN_IF_ERROR(FailureDetector::Validate(DetectorOptions(o)));
  if (o.lease_log < o.visibility + 2 * o.poll)
    return InvalidArgument(
        "lease_log of {} s: it must last two polls of {} s and the visibility of {} s",
        absl::ToDoubleSeconds(o.lease_log), absl::ToDoubleSeconds(o.poll),
        absl::ToDoubleSeconds(o.visibility));
  return absl::OkStatus();
}

}  // namespace perdure
