// So much of a core for a process, by a control group of its own: version 2 where it is mounted and
// has the controller, else version 1.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace perdure {

class CpuQuota {
 public:
  // Unavailable: this machine lets nobody make such groups, or not us.
  static absl::StatusOr<CpuQuota> Hold(int pid, int percent, const std::string& name);
  CpuQuota(CpuQuota&& other) noexcept;
  CpuQuota(const CpuQuota&) = delete;
  ~CpuQuota();  // Whoever is in it goes free.

  absl::Status Set(int percent) const;

 private:
  CpuQuota(std::string folder, bool second) : folder_(std::move(folder)), second_(second) {}

  std::string folder_;
  bool second_;
};

}  // namespace perdure
