// K_job: the secret that the agents of one job share, and that nobody else has. Whoever knows it is
// an agent of this job; the wire asks for nothing more.
//
//   K_job = BLAKE2b-256(key = K_file, "perdure job key 1" | leg | run | job | restart)
//
// K_file is the run's key (RUN/control/run.key). `leg` is a second secret that came another way (a
// MUNGE credential), so that neither a leaked file nor a leaked MUNGE key is enough; absent, its
// length is 0. Run, job and restart count give each start of each job a key of its own: what an
// earlier start said or knows is worth nothing later. Texts and the leg are preceded by their
// length in one byte, numbers are 64 bits, little-endian, so two inputs never give the same bytes.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>

namespace perdure {

inline constexpr size_t kSecretBytes = 32;

struct JobKeyInput {
  std::span<const uint8_t> file_key;    // K_file, kSecretBytes; the caller wipes its copy.
  std::span<const uint8_t> second_leg;  // Empty, or kSecretBytes.
  std::string run_id;                   // At most 255 bytes.
  uint64_t job = 0;
  uint64_t restart = 0;  // How often the scheduler has restarted this job.
};

// Lies in memory that is not swapped where the system allows, is left out of core files, has guard
// pages and cannot be written; wiped when the last handle on it goes. Handles are move-only, so
// that another one is asked for by name. Nothing prints it.
class JobKey {
 public:
  static JobKey Derive(const JobKeyInput& input);
  JobKey(JobKey&&) noexcept = default;
  JobKey& operator=(JobKey&&) noexcept = default;

  // Another handle on the same bytes, which have pages of their own: 16 KiB of addresses.
  JobKey Share() const { return JobKey(bytes_); }
  std::span<const uint8_t, kSecretBytes> bytes() const {
    return std::span<const uint8_t, kSecretBytes>(bytes_.get(), kSecretBytes);
  }

 private:
  explicit JobKey(std::shared_ptr<const uint8_t[]> bytes) : bytes_(std::move(bytes)) {}

  std::shared_ptr<const uint8_t[]> bytes_;
};

}  // namespace perdure
