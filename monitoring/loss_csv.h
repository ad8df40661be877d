// metrics/loss.csv: one row a step over the whole run, never two rows of one step, whatever was
// stopped and resumed.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/base/unique_fd.h"

namespace perdure {

struct LossRow {
  int64_t step = 0;
  int64_t samples = 0;  // Consumed by the run.
  int64_t tokens = 0;   // Likewise.
  double loss = 0;      // Also written as its 16 hex digits of IEEE-754: what runs are compared by.
  double grad_norm = 0;
  double learning_rate = 0;
  int64_t batch = 0;  // Samples of the step.
  int64_t context = 0;
  double step_seconds = 0;
  double tokens_per_second = 0;
  uint64_t generation = 0;
  int64_t ranks = 0;
  std::string phase;
};

// Of one row without its end. DataLoss: it is none.
absl::StatusOr<LossRow> ParseLossRow(std::string_view row);

// As in the column loss_bits.
std::string LossBits(double loss);

class LossCsv {
 public:
  // Opens or creates `path`. Rows of steps behind `resume_step` (they will be taken again) and a
  // torn last row are cut off: only the end of the file is read, which may be that of a run of many
  // months. DataLoss: the file is not ours.
  static absl::StatusOr<std::unique_ptr<LossCsv>> Open(const std::string& path,
                                                       int64_t resume_step);
  absl::Status Append(const LossRow& row);

 private:
  LossCsv(UniqueFd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}
  UniqueFd fd_;
  std::string path_;
};

// The loss_bits of all whole rows of steps `from` and later, by step. NotFound: no file. DataLoss:
// it is not ours.
absl::StatusOr<std::map<int64_t, std::string>> ReadLossBits(const std::string& path,
                                                            int64_t from = 0);

// The time of all steps that count, in seconds: each once, however often it was taken. Errors
// likewise.
absl::StatusOr<double> ReadStepSeconds(const std::string& path);

// All whole rows of steps `from` and later, in order. Errors likewise.
absl::StatusOr<std::vector<LossRow>> ReadLossRows(const std::string& path, int64_t from);

// The last whole row; none where there is none yet. NotFound: no file. DataLoss: it is not ours.
absl::StatusOr<std::optional<LossRow>> LastLossRow(const std::string& path);

}  // namespace perdure
