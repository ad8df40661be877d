// What NVML says about a GPU: facts (temperature, errors so far, ...) and events (Xid, double-bit
// ECC). It is evidence for people, never a reason to decide: a rank learns that its device fails
// from the device.
//
// The library belongs to the driver and may be missing, so it is opened at run time.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace perdure {

inline constexpr char kNvmlLibrary[] = "libnvidia-ml.so.1";

// "Xid 79: the GPU has fallen off the bus (drain the node, then reset or replace the GPU)".
std::string XidWords(uint64_t xid);

class DeviceWatch {
 public:
  // Called by the watch's thread: {"what", "xid" or "event", "facts"}.
  using Tell = std::function<void(const nlohmann::json& evidence)>;

  // Events are collected from here on. NotFound: no such library; Unavailable: it does not know the
  // device, or does not work here.
  static absl::StatusOr<std::unique_ptr<DeviceWatch>> Open(const std::string& library,
                                                           const std::string& pci_bus_id);
  ~DeviceWatch();  // As Stop().
  DeviceWatch(const DeviceWatch&) = delete;
  DeviceWatch& operator=(const DeviceWatch&) = delete;

  // What the device says now; a fact that it does not know is left out. REQUIRES: before Start().
  nlohmann::json Facts() const;
  // Tells of each event until Stop(), which waits a moment for what may just be coming in: an Xid
  // and the error that it causes in CUDA race each other.
  void Start(Tell tell);
  void Stop();

 private:
  struct Library;
  DeviceWatch(std::unique_ptr<Library> library);
  // False: there will be no more events.
  bool Look(absl::Duration wait);

  std::unique_ptr<Library> library_;
  Tell tell_;
  std::jthread thread_;
};

}  // namespace perdure
