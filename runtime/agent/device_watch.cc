#include "runtime/agent/device_watch.h"

#include <dlfcn.h>

#include <utility>

#include "runtime/base/status.h"

namespace perdure {
namespace {

using Json = nlohmann::json;

// As in NVML's header, whose numbers never change.
using Return = int;
using Handle = void*;
constexpr Return kSuccess = 0, kTimeout = 10;
constexpr unsigned long long kDoubleBitEcc = 2, kXid = 8;
constexpr int kCorrected = 0, kUncorrected = 1, kVolatile = 0;
constexpr int kGpuSensor = 0, kSmClock = 1, kMemoryClock = 2;
struct EventData {
  Handle device;
  unsigned long long type;
  unsigned long long data;
  unsigned gpu_instance;
  unsigned compute_instance;
};

constexpr absl::Duration kLook = absl::Milliseconds(200);

struct Reason {
  unsigned long long bit;
  const char* name;
};
// Being idle and clocks that somebody asked for are no faults.
constexpr Reason kThrottleReasons[] = {
    {0x04, "power cap"},        {0x08, "hardware slowdown"}, {0x20, "software thermal"},
    {0x40, "hardware thermal"}, {0x80, "power brake"},
};

struct KnownXid {
  uint64_t xid;
  const char* words;
};
// Of NVIDIA's catalogue, those that end a job; the rest are told by number.
constexpr KnownXid kXids[] = {
    {13, "an exception in a kernel (usually the program's fault)"},
    {31, "a page fault of the GPU (usually the program's fault)"},
    {43, "the GPU has stopped a program (usually the program's fault)"},
    {45, "a program was removed after an error before this one"},
    {48, "a double-bit ECC error (drain the node and reset the GPU)"},
    {63, "a row or page is to be remapped (reset the GPU when the node is free)"},
    {64, "a row or page could not be remapped (drain the node and reset the GPU)"},
    {74, "an NVLink error (check or reset the GPU; if it returns, the link's hardware)"},
    {79, "the GPU has fallen off the bus (drain the node, then reset or replace the GPU)"},
    {92, "many single-bit ECC errors (have the GPU tested)"},
    {94, "a contained ECC error (start again; reset the GPU when the node is free)"},
    {95, "an uncontained ECC error (drain the node and reset the GPU)"},
    {119, "the GPU's system processor does not answer (drain the node and reset the GPU)"},
    {120, "the GPU's system processor reports an error (drain the node and reset the GPU)"},
};

}  // namespace

std::string XidWords(uint64_t xid) {
  for (const KnownXid& known : kXids)
    if (known.xid == xid) return fmt::format("Xid {}: {}", xid, known.words);
  return fmt::format("Xid {}: see NVIDIA's catalogue of Xid errors", xid);
}

struct DeviceWatch::Library {
  ~Library() {
    if (events != nullptr) event_set_free(events);
    if (initialised) shutdown();
    if (handle != nullptr) ::dlclose(handle);
  }

  // A function that the library lacks is null, and what it would say is left out.
  template <typename F>
  void Find(F*& function, const char* name) {
    function = reinterpret_cast<F*>(::dlsym(handle, name));
  }
  absl::Status Load(const std::string& name) {
    handle = ::dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) return NotFound("{} is not here ({})", name, ::dlerror());
    Find(init, "nvmlInit_v2");
    Find(shutdown, "nvmlShutdown");
    Find(error_string, "nvmlErrorString");
    Find(by_bus_id, "nvmlDeviceGetHandleByPciBusId_v2");
    Find(event_set_create, "nvmlEventSetCreate");
    Find(event_set_free, "nvmlEventSetFree");
    Find(register_events, "nvmlDeviceRegisterEvents");
    Find(event_set_wait, "nvmlEventSetWait_v2");
    for (const auto& [found, symbol] : {std::pair(init != nullptr, "nvmlInit_v2"),
                                        {shutdown != nullptr, "nvmlShutdown"},
                                        {error_string != nullptr, "nvmlErrorString"},
                                        {by_bus_id != nullptr, "nvmlDeviceGetHandleByPciBusId_v2"}})
      if (!found) return Unavailable("{} has no {}: it is no NVML that we know", name, symbol);
    Find(get_name, "nvmlDeviceGetName");
    Find(get_uuid, "nvmlDeviceGetUUID");
    Find(get_ecc, "nvmlDeviceGetTotalEccErrors");
    Find(get_retired_pending, "nvmlDeviceGetRetiredPagesPendingStatus");
    Find(get_remapped, "nvmlDeviceGetRemappedRows");
    Find(get_temperature, "nvmlDeviceGetTemperature");
    Find(get_power, "nvmlDeviceGetPowerUsage");
    Find(get_clock, "nvmlDeviceGetClockInfo");
    Find(get_throttle, "nvmlDeviceGetCurrentClocksThrottleReasons");
    return absl::OkStatus();
  }
  absl::Status OpenDevice(const std::string& pci_bus_id) {
    if (const Return r = init(); r != kSuccess)
      return Unavailable("NVML does not start: {}", error_string(r));
    initialised = true;
    bus_id = pci_bus_id;
    if (const Return r = by_bus_id(pci_bus_id.c_str(), &device); r != kSuccess)
      return Unavailable("NVML does not know the GPU at {}: {}", pci_bus_id, error_string(r));
    // Without events there still are facts.
    if (event_set_create == nullptr || event_set_free == nullptr || register_events == nullptr ||
        event_set_wait == nullptr || event_set_create(&events) != kSuccess) {
      events = nullptr;
    } else if (register_events(device, kXid | kDoubleBitEcc, events) != kSuccess &&
               register_events(device, kXid, events) != kSuccess) {
      event_set_free(events);
      events = nullptr;
    }
    return absl::OkStatus();
  }

  void* handle = nullptr;
  bool initialised = false;
  std::string bus_id;
  Handle device = nullptr, events = nullptr;
  Return (*init)() = nullptr;
  Return (*shutdown)() = nullptr;
  const char* (*error_string)(Return) = nullptr;
  Return (*by_bus_id)(const char*, Handle*) = nullptr;
  Return (*event_set_create)(Handle*) = nullptr;
  Return (*event_set_free)(Handle) = nullptr;
  Return (*register_events)(Handle, unsigned long long, Handle) = nullptr;
  Return (*event_set_wait)(Handle, EventData*, unsigned) = nullptr;
  Return (*get_name)(Handle, char*, unsigned) = nullptr;
  Return (*get_uuid)(Handle, char*, unsigned) = nullptr;
  Return (*get_ecc)(Handle, int, int, unsigned long long*) = nullptr;
  Return (*get_retired_pending)(Handle, int*) = nullptr;
  Return (*get_remapped)(Handle, unsigned*, unsigned*, unsigned*, unsigned*) = nullptr;
  Return (*get_temperature)(Handle, int, unsigned*) = nullptr;
  Return (*get_power)(Handle, unsigned*) = nullptr;
  Return (*get_clock)(Handle, int, unsigned*) = nullptr;
  Return (*get_throttle)(Handle, unsigned long long*) = nullptr;
};

DeviceWatch::DeviceWatch(std::unique_ptr<Library> library) : library_(std::move(library)) {}
DeviceWatch::~DeviceWatch() { Stop(); }

absl::StatusOr<std::unique_ptr<DeviceWatch>> DeviceWatch::Open(const std::string& library,
                                                               const std::string& pci_bus_id) {
  auto opened = std::make_unique<Library>();
  RETURN_IF_ERROR(opened->Load(library));
  RETURN_IF_ERROR(opened->OpenDevice(pci_bus_id));
  return std::unique_ptr<DeviceWatch>(new DeviceWatch(std::move(opened)));
}

Json DeviceWatch::Facts() const {
  const Library& nvml = *library_;
  const Handle device = nvml.device;
  Json facts = {{"pci", nvml.bus_id}};
  // Asks `function`, if there is one, and keeps what it answers.
  const auto number = [&]<typename T>(const char* key, T, auto* function, auto... arguments) {
    T value{};
    if (function != nullptr && function(device, arguments..., &value) == kSuccess)
      facts[key] = value;
  };
  const auto text = [&](const char* key, auto* function) {
    char buffer[128] = "";
    if (function != nullptr && function(device, buffer, sizeof buffer - 1) == kSuccess)
      facts[key] = buffer;
  };
  text("name", nvml.get_name);
  text("uuid", nvml.get_uuid);
  number("ecc_corrected", 0ull, nvml.get_ecc, kCorrected, kVolatile);
  number("ecc_uncorrected", 0ull, nvml.get_ecc, kUncorrected, kVolatile);
  number("retired_pages_pending", 0, nvml.get_retired_pending);
  number("celsius", 0u, nvml.get_temperature, kGpuSensor);
  number("milliwatts", 0u, nvml.get_power);
  number("sm_mhz", 0u, nvml.get_clock, kSmClock);
  number("memory_mhz", 0u, nvml.get_clock, kMemoryClock);
  unsigned corrected = 0, uncorrected = 0, pending = 0, failed = 0;
  if (nvml.get_remapped != nullptr &&
      nvml.get_remapped(device, &corrected, &uncorrected, &pending, &failed) == kSuccess) {
    facts["remapped_rows"] = corrected + uncorrected;
    facts["remap_pending"] = pending;
    facts["remap_failed"] = failed;
  }
  unsigned long long throttle = 0;
  if (nvml.get_throttle != nullptr && nvml.get_throttle(device, &throttle) == kSuccess) {
    facts["throttled"] = Json::array();
    for (const Reason& reason : kThrottleReasons)
      if ((throttle & reason.bit) != 0) facts["throttled"].push_back(reason.name);
  }
  return facts;
}

bool DeviceWatch::Look(absl::Duration wait) {
  const Library& nvml = *library_;
  EventData event{};
  const Return r = nvml.event_set_wait(nvml.events, &event,
                                       static_cast<unsigned>(absl::ToInt64Milliseconds(wait)));
  if (r == kTimeout) return true;
  if (r != kSuccess) {
    tell_({{"what", fmt::format("NVML can no longer watch the GPU at {}: {}", nvml.bus_id,
                                nvml.error_string(r))},
           {"event", "lost"}});
    return false;
  }
  Json evidence = {{"facts", Facts()}};
  if (event.type == kXid) {
    evidence["what"] = fmt::format("{} at PCI {}", XidWords(event.data), nvml.bus_id);
    evidence["xid"] = event.data;
  } else {
    evidence["what"] = fmt::format("a double-bit ECC error at PCI {}", nvml.bus_id);
    evidence["event"] = "double-bit ECC";
  }
  tell_(evidence);
  return true;
}

void DeviceWatch::Start(Tell tell) {
  tell_ = std::move(tell);
  if (library_->events == nullptr) return;
  thread_ = std::jthread([this](const std::stop_token& stop) {
    bool more = true;
    while (more && !stop.stop_requested()) more = Look(kLook);
    if (more) Look(kLook);
  });
}

void DeviceWatch::Stop() {
  thread_.request_stop();
  if (thread_.joinable()) thread_.join();
}

}  // namespace perdure
