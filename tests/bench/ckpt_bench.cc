// ckpt_bench DIRECTORY [HIDDEN] [ROUNDS]: saving and loading the state of one rank, against direct
// transfers of as many bytes to and from the same disk, round by round; then the planning of Lucie
// at its full size. Prints a table; the last line is JSON. ckpt_bench.py compares with PyTorch.
#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "ckpt/atom_reader.h"
#include "kernels/ops.h"
#include "runtime/base/check.h"
#include "runtime/base/files.h"
#include "runtime/base/parallel.h"
#include "runtime/train/checkpoint_saver.h"
#include "tests/tools/lucie_state.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr uint64_t kTransfer = 8 << 20;  // dd bs=8M.

double Seconds(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void Check(const absl::Status& status) {
  if (status.ok()) return;
  fmt::print(stderr, "ckpt_bench: {}\n", std::string(status.message()));
  std::exit(1);
}

template <typename T>
T Value(absl::StatusOr<T> result) {
  Check(result.status());
  return *std::move(result);
}

int64_t MemoryBytes(const std::string& key) {
  const std::string status = Value(ReadFile("/proc/self/status"));
  return std::atoll(status.c_str() + status.find(key) + key.size()) * 1024;
}

// Most memory that this process has held since ForgetPeak.
int64_t PeakBytes() { return MemoryBytes("VmHWM:"); }
void ForgetPeak() {
  File file(::open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC), "/proc/self/clear_refs");
  char five[] = "5";
  iovec piece{five, 1};
  Check(file.WriteAt(0, {&piece, 1}));
}

// --- the disk by itself -------------------------------------------------------------------------

// work(offset) of each whole transfer of a file, in so many threads with a share each.
absl::Status ForEachTransfer(uint64_t bytes, size_t threads,
                             const std::function<absl::Status(uint64_t offset)>& work) {
  const uint64_t count = bytes / kTransfer;
  return ForEachInParallel(
      threads,
      [&](size_t t) -> absl::Status {
        for (uint64_t i = count * t / threads; i < count * (t + 1) / threads; ++i)
          if (auto status = work(i * kTransfer); !status.ok()) return status;
        return absl::OkStatus();
      },
      threads);
}

// Seconds for so many bytes; the last transfer is whole or left out.
double ForAll(uint64_t bytes, double seconds) {
  return seconds * static_cast<double>(bytes) / static_cast<double>(bytes / kTransfer * kTransfer);
}

// As so many of dd oflag=direct bs=8M conv=fsync on one file, each with its share of it.
double WriteDirect(const std::string& path, char* data, uint64_t bytes, size_t threads) {
  const double seconds = Seconds([&] {
    File file = Value(CreateNewFile(path));
    if (threads > 1) Check(file.Reserve(bytes));  // Else each write would wait for the length.
    File direct = OpenDirect(file, O_WRONLY);
    PERDURE_CHECK(direct.is_open());
    Check(ForEachTransfer(bytes, threads, [&](uint64_t offset) {
      iovec piece{data + offset, kTransfer};
      return direct.WriteAt(offset, {&piece, 1});
    }));
    Check(file.Sync());
  });
  fs::remove(path);
  return ForAll(bytes, seconds);
}

// As so many of dd iflag=direct bs=8M.
double ReadDirect(const std::string& path, uint64_t bytes, size_t threads) {
  const File file = Value(OpenPartFile(path));
  const File direct = OpenDirect(file, O_RDONLY);
  PERDURE_CHECK(direct.is_open());
  return ForAll(bytes, Seconds([&] {
                  Check(ForEachTransfer(bytes, threads, [&](uint64_t offset) {
                    thread_local AlignedBuffer buffer(kTransfer);
                    iovec piece{buffer.data(), kTransfer};
                    return direct.ReadAt(offset, {&piece, 1});
                  }));
                }));
}

// --- saving, loading ----------------------------------------------------------------------------

// Takes the saver's reports and settles each save at once.
class SettlingHost final : public RankHost {
 public:
  absl::Status Loaded(std::span<const int64_t>, std::span<const Digest>) override {
    return absl::OkStatus();
  }
  Command StepFinished(const StepReport&) override { return Command::kNone; }
  absl::Status Saved(const SavedRun& saved) override {
    saved_ = saved;
    return absl::OkStatus();
  }
  absl::StatusOr<SaveOrder> NextOrder(int64_t) override { return SaveOrder{}; }
  absl::Status Verified(int64_t, const std::string&, const absl::Status&) override {
    return absl::OkStatus();
  }
  const SavedRun& saved() const { return saved_; }

 private:
  SavedRun saved_;
};

constexpr std::array<size_t, 3> kThreads = {1, 2, 4};  // Of direct transfers.

struct Round {
  std::array<double, kThreads.size()> direct_write{}, direct_read{};
  double save = 0, stall = 0, copy = 0, load = 0;  // Seconds, all of them.
  int64_t load_memory = 0;                         // Bytes beside the state that is filled.
};

class Bench {
 public:
  Bench(std::string directory, int64_t hidden)
      : directory_(std::move(directory)),
        config_(Value(ScaledLucie({.hidden = hidden, .atom_elements = 262144},
                                  {.tensor = 1, .pipeline = 1, .data = 1}))),
        table_(LucieTable(config_)),
        writers_(PlanWriters(config_, table_, 1)),
        ops_(NewCpuOps(1)),
        bytes_(static_cast<uint64_t>(table_.parameters()) * kStatePartCount * sizeof(float)) {}

  uint64_t bytes() const { return bytes_; }
  const AtomTable& table() const { return table_; }

  std::vector<Round> Run(int rounds) {
    LucieState state(table_, AtomsOfRank(writers_, 0));
    state.Fill(table_);
    SettlingHost host;
    CheckpointSaver::Options options;
    options.run_directory = directory_;
    options.stamp.generation = 1;
    options.stamp.run_id = LucieManifest(config_, table_).run_id;
    options.write = WriteOptionsOf(config_.checkpoint);
    CheckpointSaver saver(options, &table_, &writers_, 0, state.atoms(), ops_.get(), &host);
    std::vector<Round> results;
    for (int i = 0; i <= rounds; ++i) {
      Round round;
      const std::string plain = directory_ + "/plain";
      for (size_t t = 0; t < kThreads.size(); ++t)
        round.direct_write[t] =
            WriteDirect(plain, Aligned(state), bytes_ - kDirectBytes, kThreads[t]);
      round.copy = Copy(state);
      const double before = saver.stall_seconds();
      const int64_t step = 1000 + i;
      Check(saver.Save(step));
      round.stall = saver.stall_seconds() - before;
      Check(saver.Wait());
      Check(host.saved().status);
      round.save = host.saved().write_seconds;
      const std::string made = directory_ + "/ckpt/" + CheckpointName(step, 1, host.saved().nonce);
      Manifest manifest = LucieManifest(config_, table_);
      manifest.step = step;
      manifest.parts = {Value(JoinRuns(std::vector{*host.saved().run}))};
      Check(WriteManifest(made, table_, manifest).status());
      for (size_t t = 0; t < kThreads.size(); ++t)
        round.direct_read[t] = ReadDirect(made + "/" + manifest.parts[0].file, bytes_, kThreads[t]);
      ForgetPeak();
      const int64_t held = PeakBytes();
      round.load = Seconds([&] { Check(ReadAtoms(made, manifest, table_, copy_->atoms())); });
      round.load_memory = PeakBytes() - held;
      fs::remove_all(made);
      if (i > 0) results.push_back(round);  // The first one warms up.
    }
    return results;
  }

 private:
  // Of the state, into memory that is there already.
  double Copy(LucieState& state) {
    if (!copy_) copy_ = std::make_unique<LucieState>(table_, AtomsOfRank(writers_, 0));
    return Seconds(
        [&] { std::memcpy(copy_->atoms()[0].parts[0], state.atoms()[0].parts[0], bytes_); });
  }

  // The same bytes, from where direct transfers may begin.
  static char* Aligned(LucieState& state) {
    const auto at = reinterpret_cast<uintptr_t>(state.atoms()[0].parts[0]);
    return reinterpret_cast<char*>((at + kDirectBytes - 1) / kDirectBytes * kDirectBytes);
  }

  const std::string directory_;
  const RunConfig config_;
  const AtomTable table_;
  const Writers writers_;
  const std::unique_ptr<Ops> ops_;
  const uint64_t bytes_;
  std::unique_ptr<LucieState> copy_;
};

// --- planning -----------------------------------------------------------------------------------

// A manifest as 512 ranks would leave it, with the right lengths and digests of nothing.
Manifest FullManifest(const RunConfig& config, const AtomTable& table) {
  Manifest manifest = LucieManifest(config, table);
  for (const PartPlan& plan : PlanWriters(config, table, 4).files) {
    const auto length = static_cast<uint64_t>(PlaceElements(table, plan.atoms, plan.runs).length);
    const uint64_t dataset = (length * sizeof(float) / kBlockBytes + 1) * kBlockBytes;
    PartReport part{.file = plan.file, .runs = plan.runs, .atoms = plan.atoms};
    for (size_t i = 0; i < part.offsets.size(); ++i) part.offsets[i] = kBlockBytes + i * dataset;
    part.bytes = kBlockBytes + part.offsets.size() * dataset;
    part.blocks.resize(part.bytes / kBlockBytes);
    part.atom_digests.resize(part.atoms.size());
    manifest.parts.push_back(std::move(part));
  }
  return manifest;
}

// From a checkpoint of 512 ranks to where each of 128 finds its atoms: what has to be known before
// the first byte of state is read.
Json Plan(const std::string& directory) {
  const LucieSize full{.hidden = 4096, .atom_elements = 262144};
  const auto before = Value(ScaledLucie(full, {.tensor = 4, .pipeline = 4, .data = 32}));
  const auto after = Value(ScaledLucie(full, {.tensor = 4, .pipeline = 4, .data = 8}));
  {
    const AtomTable table = LucieTable(before);
    Manifest manifest = FullManifest(before, table);
    Check(WriteManifest(directory, table, manifest).status());
  }
  int64_t parameters = 0;
  size_t reads = 0;
  const double seconds = Seconds([&] {
    const Manifest manifest = Value(ReadManifest(directory, nullptr));
    const AtomTable table = LucieTable(after);
    parameters = table.parameters();
    const Writers readers = PlanWriters(after, table, 1);
    const auto reader = Value(AtomReader::Open(directory, manifest, table));
    for (size_t rank = 0; rank < readers.ranks.size(); ++rank)
      for (const int64_t atom : AtomsOfRank(readers, rank))
        reads += reader->place(atom).part >= 0 ? 1 : 0;
  });
  fs::remove(directory + "/manifest.json");
  fmt::print("plan 512 to 128 ranks, {} parameters, {} atoms: {:.2f} s, at most {:.0f} MB\n",
             parameters, reads, seconds, static_cast<double>(PeakBytes()) * 1e-6);
  return {
      {"parameters", parameters}, {"atoms", reads}, {"seconds", seconds}, {"bytes", PeakBytes()}};
}

// Medians over rounds. Of direct transfers those with the best number of threads.
class Table {
 public:
  Table(uint64_t bytes, const std::vector<Round>& rounds, Json* json)
      : bytes_(bytes), rounds_(rounds), json_(*json) {}

  double Row(const std::string& what, const std::function<double(const Round&)>& seconds) {
    std::vector<double> times;
    for (const Round& round : rounds_) times.push_back(seconds(round));
    std::sort(times.begin(), times.end());
    const double median = times[times.size() / 2];
    fmt::print("{:26} {:6.3f} s ({:.3f} to {:.3f})  {:5.2f} GB/s", what, median, times.front(),
               times.back(), static_cast<double>(bytes_) * 1e-9 / median);
    json_[what] = times;
    return median;
  }
  double Direct(const std::string& what, std::array<double, kThreads.size()> Round::*seconds) {
    double best = std::numeric_limits<double>::max();
    for (size_t t = 0; t < kThreads.size(); ++t) {
      best = std::min(best, Row(fmt::format("{}, {} threads", what, kThreads[t]),
                                [&](const Round& round) { return (round.*seconds)[t]; }));
      fmt::print("\n");
    }
    return best;
  }
  void Against(double reference, const std::string& what, double Round::*seconds) {
    const double median = Row(what, [&](const Round& round) { return round.*seconds; });
    fmt::print("  {:.3f} of its speed\n", reference / median);
    json_[what + " ratio"] = reference / median;
  }

 private:
  const uint64_t bytes_;
  const std::vector<Round>& rounds_;
  Json& json_;
};

void Print(uint64_t bytes, const std::vector<Round>& rounds, Json* json) {
  Table table(bytes, rounds, json);
  table.Against(table.Direct("direct write", &Round::direct_write), "save", &Round::save);
  table.Against(table.Direct("direct read", &Round::direct_read), "load", &Round::load);
  const double copy = table.Row("copy", [](const Round& round) { return round.copy; });
  fmt::print("\n");
  table.Against(copy, "training waits for a save", &Round::stall);
  int64_t memory = 0;
  for (const Round& round : rounds) memory = std::max(memory, round.load_memory);
  fmt::print("a load takes at most {:.0f} MB beside the state, {:.1f} % of it\n",
             static_cast<double>(memory) * 1e-6,
             100 * static_cast<double>(memory) / static_cast<double>(bytes));
  (*json)["load memory"] = memory;
}

}  // namespace
}  // namespace perdure

int main(int argc, char** argv) {
  using namespace perdure;
  if (argc < 2 || argc > 4) {
    fmt::print(stderr, "usage: ckpt_bench DIRECTORY [HIDDEN] [ROUNDS]\n");
    return 2;
  }
  const std::string directory = std::string(argv[1]) + "/perdure-ckpt-bench";
  PERDURE_CHECK(fs::create_directory(directory));
  Json json;
  json["plan"] = Plan(directory);
  Bench bench(directory, argc > 2 ? std::atoll(argv[2]) : 512);
  json["bytes"] = bench.bytes();
  for (const TensorSpec& tensor : bench.table().tensors())
    json["tensors"].push_back({tensor.name, tensor.rows, tensor.cols});
  Print(bench.bytes(), bench.Run(argc > 3 ? std::atoi(argv[3]) : 9), &json);
  fs::remove_all(directory);
  fmt::print("{}\n", json.dump());
}
