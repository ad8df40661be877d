// A stand-in for libnvidia-ml.so.1: one GPU with an Xid and a double-bit ECC error, each told once,
// after which the GPU is lost. It lacks nvmlDeviceGetPowerUsage, as old libraries lack functions.
#include <chrono>
#include <cstring>
#include <thread>

namespace {

constexpr int kSuccess = 0, kNotSupported = 3, kNotFound = 6, kLost = 15;
int device_of_ours, events_of_ours, told;

int Text(const char* text, char* to, unsigned length) {
  std::strncpy(to, text, length);
  return kSuccess;
}

}  // namespace

struct EventData {
  void* device;
  unsigned long long type, data;
  unsigned gpu_instance, compute_instance;
};

extern "C" {
int nvmlInit_v2() {
  told = 0;
  return kSuccess;
}
int nvmlShutdown() { return kSuccess; }
const char* nvmlErrorString(int code) { return code == kLost ? "GPU is lost" : "Not Found"; }
int nvmlDeviceGetHandleByPciBusId_v2(const char* id, void** device) {
  *device = &device_of_ours;
  return std::strcmp(id, "0000:3b:00.0") == 0 ? kSuccess : kNotFound;
}
int nvmlDeviceGetName(void*, char* to, unsigned n) { return Text("Fake GPU", to, n); }
int nvmlDeviceGetUUID(void*, char* to, unsigned n) { return Text("GPU-1234", to, n); }
int nvmlDeviceGetTotalEccErrors(void*, int kind, int, unsigned long long* count) {
  *count = kind == 1 ? 3 : 17;
  return kSuccess;
}
int nvmlDeviceGetRetiredPagesPendingStatus(void*, int*) { return kNotSupported; }
int nvmlDeviceGetRemappedRows(void*, unsigned* corrected, unsigned* uncorrected, unsigned* pending,
                              unsigned* failed) {
  *corrected = 1, *uncorrected = 2, *pending = 1, *failed = 0;
  return kSuccess;
}
int nvmlDeviceGetTemperature(void*, int, unsigned* celsius) {
  *celsius = 61;
  return kSuccess;
}
int nvmlDeviceGetClockInfo(void*, int kind, unsigned* mhz) {
  *mhz = kind == 1 ? 1980 : 2619;
  return kSuccess;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void*, unsigned long long* reasons) {
  *reasons = 0x1 | 0x4 | 0x40;  // Idle is no fault.
  return kSuccess;
}
int nvmlEventSetCreate(void** events) {
  *events = &events_of_ours;
  return kSuccess;
}
int nvmlEventSetFree(void*) { return kSuccess; }
int nvmlDeviceRegisterEvents(void*, unsigned long long types, void*) {
  return types == 8 ? kSuccess : kNotSupported;  // Xid alone, as on a device without ECC.
}
int nvmlEventSetWait_v2(void*, EventData* event, unsigned milliseconds) {
  std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds / 10));
  if (told == 2) return kLost;
  *event = {&device_of_ours, told == 0 ? 8ull : 2ull, told == 0 ? 79ull : 0ull, 0, 0};
  ++told;
  return kSuccess;
}
}
