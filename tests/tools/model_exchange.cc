// What oracles ask of a model's exchange with others, without a run:
//
//   model_exchange import HUGGINGFACE_DIR CHECKPOINT_DIR TENSOR_SHARDS
//   model_exchange export CHECKPOINT_DIR HUGGINGFACE_DIR bf16|fp32 SHARD_BYTES
//   model_exchange loss CHECKPOINT_DIR TOKENS.i32 CONTEXT
//
// A checkpoint's model is that of the run.toml in its manifest. TOKENS.i32: samples of CONTEXT + 1
// tokens each; printed is their mean loss in nats, computed in fp32.
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <numeric>
#include <string>
#include <vector>

#include "ckpt/atom_reader.h"
#include "ckpt/checkpoint.h"
#include "ckpt/convert/huggingface.h"
#include "kernels/cpu/cpu_ops.h"
#include "launch/config.h"
#include "model/parameters.h"
#include "model/stage.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

struct Checkpoint {
  std::string directory;
  Manifest manifest;
  RunConfig config;
  AtomTable table;

  const PhaseConfig& phase() const { return config.phases[static_cast<size_t>(manifest.phase)]; }
};

absl::StatusOr<Checkpoint> OpenCheckpoint(const std::string& directory) {
  ASSIGN_OR_RETURN(Manifest manifest, ReadManifest(directory, nullptr));
  ASSIGN_OR_RETURN(RunConfig config, ParseConfig(manifest.config, directory, {}));
  AtomTable table(ModelTensors(config.model, config.numerics.tensor_shards),
                  manifest.atom_elements);
  return Checkpoint{directory, std::move(manifest), std::move(config), std::move(table)};
}

// --- import, export -----------------------------------------------------------------------------

RunConfig ConfigOf(const HuggingFaceConfig& theirs, int64_t tensor_shards) {
  RunConfig config;
  config.name = "imported";
  config.model = theirs.model;
  PhaseConfig phase{.name = "imported",
                    .samples = 1,
                    .context = theirs.max_position_embeddings,
                    .rope_theta = theirs.rope_theta};
  phase.batch.final = 1;
  phase.rate.peak = 1e-4;
  phase.mixture = {{.path = "data/none", .weight = 1}};
  config.phases = {phase};
  config.numerics.tensor_shards = tensor_shards;
  config.numerics.atom_elements = 1024;  // So that small models have many.
  return config;
}

absl::Status Import(const std::string& from, const std::string& to, int64_t tensor_shards) {
  ASSIGN_OR_RETURN(const HuggingFaceConfig theirs, ReadHuggingFaceConfig(from));
  RETURN_IF_ERROR(ValidateModel(theirs.model, tensor_shards));
  const RunConfig config = ConfigOf(theirs, tensor_shards);
  const AtomTable table(ModelTensors(config.model, tensor_shards), config.numerics.atom_elements);
  ASSIGN_OR_RETURN(const auto source, HuggingFaceSource::Open(from, table));
  std::vector<float> memory(static_cast<size_t>(table.parameters()) * kStatePartCount);
  std::vector<AtomState> states;
  float* at = memory.data();
  for (size_t i = 0; i < table.atoms().size(); ++i) {
    states.push_back({.atom = static_cast<int64_t>(i)});
    for (float*& part : states.back().parts) {
      part = at;
      at += table.atoms()[i].count;
    }
  }
  RETURN_IF_ERROR(source->Read(states));
  RETURN_IF_ERROR(MakeDirectories(to));
  Manifest manifest{.phase_name = config.phases[0].name,
                    .generation = 1,
                    .run_id = std::string(32, '0'),
                    .config = PrintConfig(config),
                    .layout = "imported",
                    .created = "1970-01-01T00:00:00Z",
                    .atom_elements = table.atom_elements(),
                    .tensors = table.tensors()};
  ASSIGN_OR_RETURN(PartReport part,
                   WritePart(to, "part-00000.h5", table, states, 0, 1, manifest.run_id));
  manifest.parts.push_back(std::move(part));
  return WriteManifest(to, table, manifest).status();
}

absl::Status Export(const std::string& from, const std::string& to, const std::string& dtype,
                    uint64_t shard_bytes) {
  ASSIGN_OR_RETURN(const Checkpoint checkpoint, OpenCheckpoint(from));
  ASSIGN_OR_RETURN(const auto reader,
                   AtomReader::Open(from, checkpoint.manifest, checkpoint.table));
  return ExportHuggingFace(
      *reader, checkpoint.table,
      {.directory = to,
       .model = checkpoint.config.model,
       .context = checkpoint.phase().context,
       .rope_theta = checkpoint.phase().rope_theta,
       .dtype = dtype == "bf16" ? SafetensorsDType::kBF16 : SafetensorsDType::kF32,
       .shard_bytes_max = shard_bytes});
}

// --- loss ---------------------------------------------------------------------------------------

// One rank has all slices: nothing is gathered or summed with others.
class OneRank final : public TensorAxis {
 public:
  absl::Status AllGather(const void* in, size_t bytes, void* out) override {
    std::memmove(out, in, bytes);
    return absl::OkStatus();
  }
  absl::Status ReduceScatterTree(const float* partial, int64_t count, float* out) override {
    return AllGather(partial, static_cast<size_t>(count) * sizeof(float), out);
  }
  absl::Status AllReduceTree(const float* partial, int64_t count, float* out) override {
    return ReduceScatterTree(partial, count, out);
  }
};

// The whole model in memory.
class WholeModel final : public ParameterAccess {
 public:
  absl::Status Load(const Checkpoint& checkpoint) {
    std::vector<int64_t> layers(static_cast<size_t>(checkpoint.config.model.layers) + 2);
    std::iota(layers.begin(), layers.end(), -1);
    const TensorSlot slot{.shards = checkpoint.config.numerics.tensor_shards};
    buckets_ = MakeBuckets(checkpoint.table, checkpoint.config.model, slot, layers);
    const auto size = static_cast<size_t>(buckets_.back().offset + buckets_.back().size);
    weights_.resize(size);
    gradients_.resize(size);
    std::vector<int64_t> places(checkpoint.table.atoms().size());
    for (const Bucket& bucket : buckets_)
      for (const PlacedAtom& placed : bucket.atoms)
        places[static_cast<size_t>(placed.atom)] = bucket.offset + placed.offset;
    ASSIGN_OR_RETURN(const auto reader,
                     AtomReader::Open(checkpoint.directory, checkpoint.manifest, checkpoint.table));
    return ForEachAtom(*reader, checkpoint.table, {0, static_cast<int64_t>(places.size())},
                       [&](const AtomState& state, int64_t count) {
                         std::copy_n(state.parts[0], count,
                                     weights_.data() + places[static_cast<size_t>(state.atom)]);
                       });
  }

  const std::vector<Bucket>& buckets() const { return buckets_; }

  absl::StatusOr<const void*> Weights(int bucket) override { return weights_.data() + At(bucket); }
  void Release(int) override {}
  absl::StatusOr<float*> Gradients(int bucket) override { return gradients_.data() + At(bucket); }
  absl::Status GradientsReady(int) override { return absl::OkStatus(); }

 private:
  int64_t At(int bucket) const { return buckets_[static_cast<size_t>(bucket)].offset; }

  std::vector<Bucket> buckets_;
  std::vector<float> weights_, gradients_;
};

absl::Status PrintLoss(const std::string& directory, const std::string& tokens_path,
                       int64_t context) {
  ASSIGN_OR_RETURN(const Checkpoint checkpoint, OpenCheckpoint(directory));
  ASSIGN_OR_RETURN(const std::string bytes, ReadFile(tokens_path));
  std::vector<int32_t> tokens(bytes.size() / sizeof(int32_t));
  std::memcpy(tokens.data(), bytes.data(), tokens.size() * sizeof(int32_t));
  const int64_t samples = static_cast<int64_t>(tokens.size()) / (context + 1);
  WholeModel weights;
  RETURN_IF_ERROR(weights.Load(checkpoint));
  OneRank axis;
  const std::unique_ptr<Ops> ops = NewCpuOps(1);
  Stage stage({.model = checkpoint.config.model,
               .slot = {.shards = checkpoint.config.numerics.tensor_shards},
               .context = context,
               .rope_theta = checkpoint.phase().rope_theta},
              weights.buckets(), &checkpoint.table, ops.get(), &axis, &weights);
  double loss = 0;  // The head is part of the backward pass.
  for (int64_t sample = 0; sample < samples; ++sample) {
    const int32_t* first = tokens.data() + sample * (context + 1);
    RETURN_IF_ERROR(stage.Forward(0, first));
    RETURN_IF_ERROR(stage.Backward(0, {.tokens = first, .targets = first + 1, .loss = &loss}));
  }
  std::printf("%.17g\n", loss / static_cast<double>(samples * context));
  return absl::OkStatus();
}

absl::Status Run(const std::vector<std::string>& arguments) {
  if (arguments.size() == 4 && arguments[0] == "import")
    return Import(arguments[1], arguments[2], std::stoll(arguments[3]));
  if (arguments.size() == 5 && arguments[0] == "export")
    return Export(arguments[1], arguments[2], arguments[3], std::stoull(arguments[4]));
  if (arguments.size() == 4 && arguments[0] == "loss")
    return PrintLoss(arguments[1], arguments[2], std::stoll(arguments[3]));
  return InvalidArgument("usage: model_exchange import|export|loss ...; see its source");
}

}  // namespace
}  // namespace perdure

int main(int argc, char** argv) {
  const absl::Status status = perdure::Run(std::vector<std::string>(argv + 1, argv + argc));
  if (!status.ok()) std::fprintf(stderr, "model_exchange: %s\n", perdure::Message(status).c_str());
  return status.ok() ? 0 : 1;
}
