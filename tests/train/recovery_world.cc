#include "tests/train/recovery_world.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "model/parameters.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/control/snapshot_placement.h"
#include "runtime/train/snapshot_file.h"
#include "tests/train/forwarding_host.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

// A copy of the ranges alone, in a file of the same length: what the agents' wire brings.
std::string Fetch(const std::string& from, const HeldNeed& need, const std::string& to) {
  std::ifstream in(from, std::ios::binary);
  std::ofstream out(to, std::ios::binary | std::ios::trunc);
  for (const ByteRange& range : need.ranges) {
    std::string bytes(static_cast<size_t>(range.bytes), '\0');
    in.seekg(range.offset);
    in.read(bytes.data(), range.bytes);
    PERDURE_CHECK(in.good());
    out.seekp(range.offset);
    out.write(bytes.data(), range.bytes);
  }
  out.close();
  fs::resize_file(to, fs::file_size(from));
  return to;
}

class FindingHost final : public ForwardingHost {
 public:
  FindingHost(RankHost* host, const RecoveryWorld* world, const HeldStart& start, int node,
              std::string name)
      : ForwardingHost(host), world_(world), start_(start), node_(node), name_(std::move(name)) {}

  absl::StatusOr<std::vector<std::string>> FindHeld(std::span<const HeldNeed> needs) override {
    std::vector<std::string> paths;
    for (const HeldNeed& need : needs) {
      const std::string path = world_->Find(start_.generation, start_.step, need.rank, node_);
      if (path.empty()) return NotFound("no snapshot of rank {}", need.rank);
      const std::string here = world_->NodeDirectory(node_);
      const bool local = fs::path(path).parent_path() == here;
      paths.push_back(
          local ? path
                : Fetch(path, need, fmt::format("{}/fetched-{}-{}", here, name_, need.rank)));
    }
    return paths;
  }

 private:
  const RecoveryWorld* world_;
  const HeldStart start_;
  const int node_;
  const std::string name_;
};

}  // namespace

std::string SharedMemory(const std::string& name) { return "/dev/shm/perdure." + name; }

TinyFolder::TinyFolder(const std::string& name)
    : path_(SharedMemory(fmt::format("{}.{}", name, ::getpid()))) {
  fs::create_directories(path_);
  WriteTinyData(path_);
}

TinyFolder::~TinyFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

std::string TinyFolder::World(const std::string& name) const {
  const std::string world = path_ + "/" + name;
  fs::create_directories(world);
  for (const char* source : {"en.bin", "en.idx", "fr.bin", "fr.idx"})
    fs::create_symlink(path_ + "/" + source, world + "/" + source);
  return world;
}

RecoveryWorld::RecoveryWorld(std::string directory, const RunConfig& config)
    : directory_(std::move(directory)),
      config_(config),
      table_(ModelTensors(config.model, config.numerics.tensor_shards),
             config.numerics.atom_elements) {}

std::string RecoveryWorld::NodeDirectory(int node) const {
  return fmt::format("{}/node{}", directory_, node);
}

int RecoveryWorld::NodeOf(const TrainingJob& job, int rank) const {
  return rank / ranks_per_node_.at(job.generation);
}

void RecoveryWorld::LoseNode(int node) {
  for (const auto& entry : fs::directory_iterator(NodeDirectory(node))) fs::remove(entry);
}

TrainingJob RecoveryWorld::Base(uint64_t generation, const LayoutConfig& layout,
                                int ranks_per_node) {
  ranks_per_node_[generation] = ranks_per_node;
  TrainingJob job{.config = config_,
                  .data_directory = directory_,
                  .run_directory = directory_ + "/run",
                  .generation = generation};
  job.config.layout = layout;
  job.config.layout.transport = "local";
  std::vector<Seat> seats;
  std::vector<NodeOffer> offers;
  for (int r = 0; r < layout.ranks(); ++r) {
    const int node = r / ranks_per_node;
    seats.push_back({.node = static_cast<NodeId>(node), .local_rank = r % ranks_per_node});
    if (r % ranks_per_node == 0)
      offers.push_back({.node = static_cast<NodeId>(node), .domain = static_cast<uint32_t>(node)});
    offers.back().slots.push_back(r % ranks_per_node);
    fs::create_directories(NodeDirectory(node));
    job.snapshot_directories.push_back(NodeDirectory(node));
  }
  if (const auto peers = PlaceSnapshots(seats, offers); peers.ok()) job.snapshot_peers = *peers;
  return job;
}

TrainingJob RecoveryWorld::Job(uint64_t generation, const LayoutConfig& layout,
                               int ranks_per_node) {
  return Base(generation, layout, ranks_per_node);
}

TrainingJob RecoveryWorld::Resume(uint64_t generation, const LayoutConfig& layout,
                                  int ranks_per_node, const TrainingJob& old, int64_t step) {
  TrainingJob job = Base(generation, layout, ranks_per_node);
  const LayoutConfig& shape = old.config.layout;
  job.start.step = step;
  job.start.held = {.generation = old.generation,
                    .step = step,
                    .tensor = shape.tensor,
                    .pipeline = shape.pipeline,
                    .data = shape.data,
                    .virtual_stages = shape.virtual_stages};
  job.wrap_host = [this, start = *job.start.held, ranks_per_node, generation](int rank,
                                                                              RankHost* host) {
    return std::make_unique<FindingHost>(host, this, start, rank / ranks_per_node,
                                         fmt::format("g{}-r{}", generation, rank));
  };
  return job;
}

StartPoint RecoveryWorld::FromCheckpoint(const std::string& checkpoint) {
  absl::StatusOr<Manifest> manifest = ReadManifest(checkpoint, nullptr);
  PERDURE_CHECK(manifest.ok());
  StartPoint start{.step = manifest->step, .trail = manifest->trail, .checkpoint = checkpoint};
  start.manifest = *std::move(manifest);
  return start;
}

std::string RecoveryWorld::Find(uint64_t generation, int64_t step, int32_t rank, int node,
                                int without) const {
  std::vector<int> nodes;
  if (node >= 0 && fs::exists(NodeDirectory(node))) nodes.push_back(node);
  for (int n = 0; fs::exists(NodeDirectory(n)); ++n) nodes.push_back(n);
  for (const int n : nodes)
    for (int buffer = 0; n != without && buffer < 2; ++buffer) {
      const std::string path = NodeDirectory(n) + "/" + SnapshotFileName(generation, rank, buffer);
      const absl::StatusOr<SnapshotStamp> stamp = ReadSnapshotStamp(path);
      if (stamp.ok() && stamp->step == step) return path;
    }
  return "";
}

std::map<int64_t, std::set<int32_t>> RecoveryWorld::Held(uint64_t generation, int without) const {
  std::map<int64_t, std::set<int32_t>> held;
  for (int n = 0; fs::exists(NodeDirectory(n)); ++n)
    for (const auto& entry : fs::directory_iterator(NodeDirectory(n))) {
      const auto name = ParseSnapshotFileName(entry.path().filename().string());
      if (n == without || !name.has_value() || name->generation != generation) continue;
      const absl::StatusOr<SnapshotStamp> stamp = ReadSnapshotStamp(entry.path().string());
      PERDURE_CHECK(stamp.ok() || absl::IsFailedPrecondition(stamp.status()));
      if (stamp.ok()) held[stamp->step].insert(name->rank);
    }
  return held;
}

std::optional<int64_t> RecoveryWorld::NewestWhole(const TrainingJob& job, int without) const {
  std::optional<int64_t> newest;
  for (const auto& [step, ranks] : Held(job.generation, without))
    if (static_cast<int64_t>(ranks.size()) == job.config.layout.ranks()) newest = step;
  return newest;
}

int64_t RecoveryWorld::SamplesAt(int64_t step) const {
  if (step == 0) return 0;
  const StepInfo last = StepSchedule(config_).At(step - 1);
  return last.first_sample + last.batch;
}

absl::StatusOr<Digest> RecoveryWorld::CertificateOf(const TrainingJob& job, int64_t step,
                                                    int without) const {
  std::vector<Digest> digests(table_.atoms().size());
  std::vector<bool> seen(digests.size());
  std::vector<float> memory(static_cast<size_t>(kStatePartCount * table_.atom_elements()));
  for (int32_t rank = 0; rank < job.config.layout.ranks(); ++rank) {
    const std::string path = Find(job.generation, step, rank, -1, without);
    ASSIGN_OR_RETURN(const auto reader, SnapshotReader::Open(path, &table_));
    for (const int64_t atom : reader->atoms()) {
      AtomState state{.atom = atom};
      const int64_t count = table_.atoms()[static_cast<size_t>(atom)].count;
      for (size_t part = 0; part < kStatePartCount; ++part)
        state.parts[part] = memory.data() + static_cast<int64_t>(part) * count;
      RETURN_IF_ERROR(reader->Read({&state, 1}, 1));
      if (seen[static_cast<size_t>(atom)]) return Internal("atom {} has two owners", atom);
      seen[static_cast<size_t>(atom)] = true;
      digests[static_cast<size_t>(atom)] = AtomDigest(state, count);
    }
  }
  for (size_t atom = 0; atom < seen.size(); ++atom)
    if (!seen[atom]) return Internal("atom {} has no owner", atom);
  return Certificate(table_, digests, step, SamplesAt(step));
}

}  // namespace perdure
