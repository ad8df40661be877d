#include "ckpt/stream.h"

#include <algorithm>
#include <filesystem>
#include <mutex>

#include "ckpt/atom_reader.h"
#include "ckpt/run_writer.h"
#include "ckpt/verify.h"
#include "runtime/base/check.h"
#include "runtime/base/files.h"
#include "runtime/base/parallel.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

// Of a thread: what its source reads through, and the least buffers of a writer.
constexpr uint64_t kFixedBytes = 16 * kBlockBytes;

uint64_t StateBytes(int64_t elements) {
  return static_cast<uint64_t>(elements) * kStatePartCount * sizeof(float);
}

class Streamer {
 public:
  Streamer(std::string directory, const AtomTable& table, const PartStamp& stamp,
           const OpenSource& open, const StreamOptions& options)
      : directory_(std::move(directory)),
        table_(table),
        stamp_(stamp),
        open_(open),
        options_(options),
        threads_(static_cast<size_t>(std::clamp<uint64_t>(
            options.memory_bytes / kStreamMemoryLeast, 1, static_cast<uint64_t>(options.threads)))),
        // What is left goes in equal shares to atoms and to buffers of the writer.
        share_((options.memory_bytes / threads_ - kFixedBytes) / 2),
        // Told twice: written, and read back.
        total_(2 * StateBytes(table.parameters())) {}

  size_t threads() const { return threads_; }

  absl::StatusOr<PartReport> Write(const PartPlan& plan) {
    absl::StatusOr<PartReport> finished = Finished(plan);
    if (finished.ok()) return finished;
    std::error_code ignored;  // Whatever is left there is told by the creation below.
    fs::remove(fs::path(directory_) / plan.file, ignored);
    ASSIGN_OR_RETURN(PartReport part, WriteAnew(plan));
    RETURN_IF_ERROR(ReplaceFileFast((fs::path(directory_) / DoneName(plan.file)).string(),
                                    SerializePart(part)));
    RETURN_IF_ERROR(ReadBack(part));
    return part;
  }

 private:
  absl::StatusOr<PartReport> Finished(const PartPlan& plan) {
    const std::string path = (fs::path(directory_) / DoneName(plan.file)).string();
    ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
    ASSIGN_OR_RETURN(PartReport part, ParsePart(text));
    if (part.file != plan.file || part.atoms != plan.atoms || part.runs != plan.runs)
      return DataLoss("{} is of another plan", path);
    RETURN_IF_ERROR(ReadBack(part));
    for (const int64_t atom : part.atoms) Count(StateBytes(Elements(atom)));
    return part;
  }

  // While other threads read and write: a disk does all of it at once.
  absl::Status ReadBack(const PartReport& part) {
    uint64_t state = 0, told = 0;
    for (const int64_t atom : part.atoms) state += StateBytes(Elements(atom));
    RETURN_IF_ERROR(VerifyPart(directory_, part, table_, stamp_, [&](uint64_t bytes, uint64_t) {
      bytes = std::min(bytes, state - told);  // The file is longer than its state.
      told += bytes;
      Count(bytes);
    }));
    Count(state - told);
    return absl::OkStatus();
  }

  // One that another file was written from, or a new one: opening may take long.
  absl::StatusOr<std::unique_ptr<StateSource>> TakeSource() {
    {
      const std::lock_guard lock(mutex_);
      if (!idle_.empty()) {
        std::unique_ptr<StateSource> source = std::move(idle_.back());
        idle_.pop_back();
        return source;
      }
    }
    return open_();
  }

  // Its runs one after the other, each as its writer would write it.
  absl::StatusOr<PartReport> WriteAnew(const PartPlan& plan) {
    ASSIGN_OR_RETURN(std::unique_ptr<StateSource> source, TakeSource());
    std::vector<RunReport> reports;
    size_t first = 0;
    // A file without atoms has one writer all the same.
    for (size_t run = 0; run < std::max<size_t>(plan.runs.size(), 1); ++run) {
      const auto count = static_cast<size_t>(plan.runs.empty() ? 0 : plan.runs[run]);
      ASSIGN_OR_RETURN(RunReport report,
                       WriteRun(plan, run, std::span(plan.atoms).subspan(first, count), *source));
      reports.push_back(std::move(report));
      first += count;
    }
    {
      const std::lock_guard lock(mutex_);
      idle_.push_back(std::move(source));
    }
    return JoinRuns(reports);
  }

  absl::StatusOr<RunReport> WriteRun(const PartPlan& plan, size_t run,
                                     std::span<const int64_t> atoms, StateSource& source) {
    WriteOptions options{.threads = 1};
    options.buffers = static_cast<int>(std::clamp<uint64_t>(share_ / kBlockBytes, 8, 64));
    ASSIGN_OR_RETURN(const auto writer,
                     RunWriter::Create(directory_, table_, plan, run, stamp_, options));
    AtomBuffer buffer(share_);
    while (!atoms.empty()) {
      buffer.Reset(table_, atoms);
      RETURN_IF_ERROR(source.Read(buffer.states()));
      for (const AtomState& state : buffer.states()) {
        RETURN_IF_ERROR(writer->Append(state));
        Count(StateBytes(Elements(state.atom)));
      }
      atoms = atoms.subspan(buffer.states().size());
    }
    return writer->Finish();
  }

  int64_t Elements(int64_t atom) const { return table_.atoms()[static_cast<size_t>(atom)].count; }

  void Count(uint64_t bytes) {
    if (bytes == 0) return;
    const std::lock_guard lock(mutex_);
    done_ += bytes;
    if (options_.progress) options_.progress(done_, total_);
  }

  const std::string directory_;
  const AtomTable& table_;
  const PartStamp& stamp_;
  const OpenSource& open_;
  const StreamOptions& options_;
  const size_t threads_;
  const uint64_t share_;
  const uint64_t total_;
  std::mutex mutex_;  // Guards what follows.
  uint64_t done_ = 0;
  std::vector<std::unique_ptr<StateSource>> idle_;
};

}  // namespace

std::string DoneName(const std::string& part_file) { return part_file + ".done"; }

std::vector<PartPlan> CutParts(const AtomTable& table, int64_t files) {
  PERDURE_CHECK(files > 0);
  std::vector<PartPlan> plans;
  int64_t before = 0;
  for (size_t atom = 0; atom < table.atoms().size(); ++atom) {
    const int64_t count = table.atoms()[atom].count;
    // An atom belongs to the file in which its middle lies.
    const auto file = static_cast<int64_t>(static_cast<__int128>(2 * before + count) * files /
                                           (2 * table.parameters()));
    while (static_cast<int64_t>(plans.size()) <= file)
      plans.push_back({.file = fmt::format("part-{:05}.h5", plans.size())});
    plans[static_cast<size_t>(file)].atoms.push_back(static_cast<int64_t>(atom));
    before += count;
  }
  std::erase_if(plans, [](const PartPlan& plan) { return plan.atoms.empty(); });
  for (PartPlan& plan : plans) plan.runs = {static_cast<int64_t>(plan.atoms.size())};
  return plans;
}

absl::StatusOr<std::vector<PartReport>> StreamParts(const std::string& directory,
                                                    const AtomTable& table,
                                                    std::span<const PartPlan> plans,
                                                    const PartStamp& stamp, const OpenSource& open,
                                                    const StreamOptions& options) {
  if (options.memory_bytes < kStreamMemoryLeast)
    return InvalidArgument("{} bytes of memory: at least {} are needed", options.memory_bytes,
                           kStreamMemoryLeast);
  std::vector<PartReport> parts(plans.size());
  Streamer streamer(directory, table, stamp, open, options);
  RETURN_IF_ERROR(ForEachInParallel(
      plans.size(),
      [&](size_t i) -> absl::Status {
        ASSIGN_OR_RETURN(parts[i], streamer.Write(plans[i]));
        return absl::OkStatus();
      },
      streamer.threads()));
  return parts;
}

}  // namespace perdure
