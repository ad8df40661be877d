#include "tests/model/model_run.h"

#include <barrier>
#include <bit>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <thread>
#include <utility>

#include "model/parameters.h"
#include "model/stage.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr uint32_t kTokenStream = 1000;
constexpr int64_t kAtomElements = 1000;
constexpr float kPoison = std::numeric_limits<float>::quiet_NaN();

uint16_t ToBF16(float value) {  // Round to nearest even; no NaN comes here.
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// An array in device memory.
template <typename T>
class DeviceArray {
 public:
  DeviceArray(Ops* ops, int64_t count)
      : ops_(ops), count_(count), data_(static_cast<T*>(ops->Allocate(bytes()))) {}
  DeviceArray(Ops* ops, std::span<const T> host)
      : DeviceArray(ops, static_cast<int64_t>(host.size())) {
    ops_->Upload(host.data(), bytes(), data_);
    EXPECT_TRUE(ops_->Sync().ok());
  }
  ~DeviceArray() { ops_->Free(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  std::vector<T> Read() const {
    std::vector<T> host(static_cast<size_t>(count_));
    ops_->Download(data_, bytes(), host.data());
    const absl::Status status = ops_->Sync();
    EXPECT_TRUE(status.ok()) << status;
    return host;
  }

 private:
  size_t bytes() const { return static_cast<size_t>(count_) * sizeof(T); }

  Ops* ops_;
  int64_t count_;
  T* data_;
};

// A tensor axis of threads. It takes its place in the ops' stream by waiting for it.
class ThreadAxis {
 public:
  explicit ThreadAxis(int64_t size)
      : size_(size), barrier_(size), given_(static_cast<size_t>(size)) {}

  class Member final : public TensorAxis {
   public:
    Member(ThreadAxis* axis, int64_t index, Ops* ops) : axis_(axis), index_(index), ops_(ops) {}

    absl::Status AllGather(const void* in, size_t bytes, void* out) override {
      RETURN_IF_ERROR(Give(in, bytes));
      std::vector<char> all;
      for (const std::vector<char>& block : axis_->given_)
        all.insert(all.end(), block.begin(), block.end());
      axis_->barrier_.arrive_and_wait();
      return Take(all.data(), all.size(), out);
    }
    absl::Status ReduceScatterTree(const float* partial, int64_t count, float* out) override {
      return Reduce(partial, axis_->size_ * count, index_ * count, count, out);
    }
    absl::Status AllReduceTree(const float* partial, int64_t count, float* out) override {
      return Reduce(partial, count, 0, count, out);
    }

   private:
    absl::Status Give(const void* device, size_t bytes) {
      std::vector<char>& given = axis_->given_[static_cast<size_t>(index_)];
      given.resize(bytes);
      ops_->Download(device, bytes, given.data());
      RETURN_IF_ERROR(SyncOrLeave());
      axis_->barrier_.arrive_and_wait();
      return absl::OkStatus();
    }
    absl::Status Take(const void* host, size_t bytes, void* device) {
      ops_->Upload(host, bytes, device);
      return SyncOrLeave();
    }
    // After an error this rank calls no more: the others must not wait for it.
    absl::Status SyncOrLeave() {
      absl::Status status = ops_->Sync();
      if (!status.ok()) axis_->barrier_.arrive_and_drop();
      return status;
    }
    absl::Status Reduce(const float* partial, int64_t all, int64_t begin, int64_t count,
                        float* out) {
      RETURN_IF_ERROR(Give(partial, static_cast<size_t>(all) * sizeof(float)));
      std::vector<float> sum(static_cast<size_t>(count));
      for (int64_t i = 0; i < count; ++i)
        sum[static_cast<size_t>(i)] = Tree(0, axis_->size_, begin + i);
      axis_->barrier_.arrive_and_wait();
      return Take(sum.data(), sum.size() * sizeof(float), out);
    }
    float Tree(int64_t first, int64_t last, int64_t i) const {
      if (last - first == 1)
        return reinterpret_cast<const float*>(axis_->given_[static_cast<size_t>(first)].data())[i];
      const int64_t middle = (first + last) / 2;
      return Tree(first, middle, i) + Tree(middle, last, i);
    }
    ThreadAxis* axis_;
    int64_t index_;
    Ops* ops_;
  };

 private:
  int64_t size_;
  std::barrier<> barrier_;
  std::vector<std::vector<char>> given_;  // By member; read between two barriers.
};

// One rank's arena. Gradients start as NaN: what a leaf does not overwrite shows.
class MemoryAccess final : public ParameterAccess {
 public:
  MemoryAccess(const ModelRun& run, const AtomTable& table, std::vector<Bucket> buckets, Ops* ops)
      : table_(table),
        buckets_(std::move(buckets)),
        dtype_(run.dtype),
        held_(buckets_.size()),
        ready_(buckets_.size()) {
    const int64_t size = buckets_.back().offset + buckets_.back().size;
    std::vector<char> weights(static_cast<size_t>(size) * SizeOf(dtype_));
    ForEach([&](int64_t at, const TensorSpec& spec, int32_t tensor, int64_t element) {
      const float value =
          run.weight ? run.weight(spec, tensor, element) : GoldenWeight(spec, tensor, element);
      if (dtype_ == DType::kF32)
        reinterpret_cast<float*>(weights.data())[at] = value;
      else
        reinterpret_cast<uint16_t*>(weights.data())[at] = ToBF16(value);
    });
    weights_.emplace(ops, std::span<const char>(weights));
    const std::vector<float> poison(static_cast<size_t>(size), kPoison);
    gradients_.emplace(ops, std::span<const float>(poison));
  }

  absl::StatusOr<const void*> Weights(int bucket) override {
    ++held_.at(static_cast<size_t>(bucket));
    return weights_->data() + At(bucket) * static_cast<int64_t>(SizeOf(dtype_));
  }
  void Release(int bucket) override { --held_.at(static_cast<size_t>(bucket)); }
  absl::StatusOr<float*> Gradients(int bucket) override {
    EXPECT_EQ(ready_.at(static_cast<size_t>(bucket)), 0) << "gradient of a finished leaf";
    return gradients_->data() + At(bucket);
  }
  absl::Status GradientsReady(int bucket) override {
    ++ready_.at(static_cast<size_t>(bucket));
    return absl::OkStatus();
  }

  const std::vector<Bucket>& buckets() const { return buckets_; }

  void ExpectLeafFinished() const {
    for (size_t b = 0; b < buckets_.size(); ++b) {
      EXPECT_EQ(held_[b], 0) << "Weights without Release of bucket " << b;
      EXPECT_EQ(ready_[b], 1) << "GradientsReady of bucket " << b;
    }
  }

  // Copies this rank's gradients to their logical places; shared ones must agree.
  void Export(ModelGradients& out) const {
    const std::vector<float> gradients = gradients_->Read();
    size_t missing = 0, different = 0;
    ForEach([&](int64_t at, const TensorSpec&, int32_t tensor, int64_t element) {
      float& place = out.values[static_cast<size_t>(tensor)][static_cast<size_t>(element)];
      const float value = gradients[static_cast<size_t>(at)];
      missing += std::isnan(value);
      different +=
          !std::isnan(place) && std::bit_cast<uint32_t>(place) != std::bit_cast<uint32_t>(value);
      place = value;
    });
    EXPECT_EQ(missing, 0) << "elements of the gradient are not written";
    EXPECT_EQ(different, 0) << "elements of shared gradients differ between tensor ranks";
  }

 private:
  int64_t At(int bucket) const { return buckets_.at(static_cast<size_t>(bucket)).offset; }

  template <typename F>
  void ForEach(const F& f) const {
    for (const Bucket& bucket : buckets_)
      for (const PlacedAtom& placed : bucket.atoms) {
        const Atom& atom = table_.atoms()[static_cast<size_t>(placed.atom)];
        const TensorSpec& spec = table_.tensors()[static_cast<size_t>(atom.tensor)];
        for (int64_t i = 0; i < atom.count; ++i) {
          const AtomTable::Place place = table_.Locate(atom, i);
          f(bucket.offset + placed.offset + i, spec, atom.tensor,
            place.row * spec.cols + place.col);
        }
      }
  }

  const AtomTable& table_;
  std::vector<Bucket> buckets_;
  DType dtype_;
  std::optional<DeviceArray<char>> weights_;
  std::optional<DeviceArray<float>> gradients_;
  std::vector<int> held_, ready_;
};

// The ops of a tensor rank, kept from run to run: a CUDA backend's plans take longer to make than
// this model to run. Never destroyed: at the end of the process the driver may be gone.
Ops* RankOps(Backend backend, int64_t rank) {
  static auto* const all = new std::map<std::pair<Backend, int64_t>, std::unique_ptr<Ops>>;
  std::unique_ptr<Ops>& ops = (*all)[{backend, rank}];
  if (ops == nullptr && backend == Backend::kCpu) ops = NewCpuOps(1);
  if (ops == nullptr) {
    absl::StatusOr<std::unique_ptr<Ops>> cuda = NewCudaOps(0);
    EXPECT_TRUE(cuda.ok()) << cuda.status();
    ops = *std::move(cuda);
  }
  return ops.get();
}

// One tensor rank with all its pipeline stages.
class RankRun {
 public:
  RankRun(const ModelRun& run, const AtomTable& table, int64_t index, ThreadAxis* axis,
          std::span<const int32_t> tokens, std::span<const int32_t> targets)
      : run_(run),
        ops_(RankOps(run.backend, index)),
        axis_(axis, index, ops_),
        tokens_(ops_, tokens),
        targets_(ops_, targets),
        loss_(ops_, 1) {
    std::vector<int64_t> layers(static_cast<size_t>(run.model.layers) + 2);
    std::iota(layers.begin(), layers.end(), -1);
    const TensorSlot slot{.shards = run.shards, .size = run.tensor_ranks, .index = index};
    access_ = std::make_unique<MemoryAccess>(run, table,
                                             MakeBuckets(table, run.model, slot, layers), ops_);
    StageOptions options{.model = run.model,
                         .dtype = run.dtype,
                         .slot = slot,
                         .micro_batch = run.micro_batch,
                         .context = run.context,
                         .rope_theta = 500000,
                         .recompute = run.recompute,
                         .slots = 2};
    auto cuts = run.stages;
    if (cuts.empty()) cuts.push_back(layers);
    for (const auto& cut : cuts) {
      options.first_bucket = static_cast<int>(cut.front() + 1);
      const std::span<const Bucket> all = access_->buckets();
      stages_.push_back(std::make_unique<Stage>(
          options, all.subspan(static_cast<size_t>(cut.front() + 1), cut.size()), &table, ops_,
          &axis_, access_.get()));
    }
    const int64_t own = run.micro_batch * run.context / run.tensor_ranks;
    for (Matrix& d : between_) {
      d = Matrix(nullptr, run.dtype, own, run.model.hidden);
      d.data = ops_->Allocate(d.bytes());
    }
  }
  ~RankRun() {
    for (const Matrix& d : between_) ops_->Free(d.data);
  }

  // Two micro-batches in flight, as a pipeline has them.
  absl::Status Run() {
    const int64_t count = run_.samples / run_.micro_batch;
    const int64_t rows = run_.micro_batch * run_.context;
    for (int64_t m = 0; m < count + 1; ++m) {
      if (m < count) RETURN_IF_ERROR(Forward(m % 2, tokens_.data() + m * rows));
      if (m == 0) continue;
      Stage::BackwardOptions options{
          .tokens = tokens_.data() + (m - 1) * rows,
          .targets = targets_.data() + (m - 1) * rows,
          .loss_scale = 1.0F / static_cast<float>(run_.samples * run_.context),
          .first_of_leaf = m == 1,
          .last_of_leaf = m == count,
          .loss = loss_.data()};
      RETURN_IF_ERROR(Backward((m - 1) % 2, options));
    }
    access_->ExpectLeafFinished();
    return ops_->Sync();
  }

  double loss() const { return loss_.Read()[0] / static_cast<double>(run_.samples * run_.context); }
  const MemoryAccess& access() const { return *access_; }

 private:
  absl::Status Forward(int64_t slot, const int32_t* tokens) {
    for (size_t s = 0; s < stages_.size(); ++s) {
      EXPECT_EQ(stages_[s]->has_embedding(), s == 0);
      EXPECT_EQ(stages_[s]->has_head(), s + 1 == stages_.size());
      if (s > 0)
        ops_->Copy(stages_[s - 1]->Output(static_cast<int>(slot)),
                   stages_[s]->Input(static_cast<int>(slot)));
      RETURN_IF_ERROR(stages_[s]->Forward(static_cast<int>(slot), s == 0 ? tokens : nullptr));
    }
    return absl::OkStatus();
  }
  absl::Status Backward(int64_t slot, const Stage::BackwardOptions& whole) {
    for (size_t s = stages_.size(); s-- > 0;) {
      Stage::BackwardOptions options = whole;
      if (s > 0) options.tokens = nullptr;
      if (s > 0) options.input_gradient = between_[s % 2];
      if (s + 1 < stages_.size()) {
        options.targets = nullptr;
        options.loss = nullptr;
        options.output_gradient = between_[(s + 1) % 2];
      }
      RETURN_IF_ERROR(stages_[s]->Backward(static_cast<int>(slot), options));
    }
    return absl::OkStatus();
  }

  const ModelRun& run_;
  Ops* ops_;
  ThreadAxis::Member axis_;
  DeviceArray<int32_t> tokens_, targets_;
  DeviceArray<double> loss_;  // Sum over tokens.
  std::unique_ptr<MemoryAccess> access_;
  std::vector<std::unique_ptr<Stage>> stages_;
  Matrix between_[2];  // [Mt, h]: of stage s's input, at s % 2.
};

}  // namespace

uint32_t Mix(uint32_t stream, uint32_t element) {
  uint32_t h = stream * 0x9E3779B1U + element * 0x85EBCA6BU + 1;
  h = (h ^ h >> 16) * 0x7FEB352DU;
  h = (h ^ h >> 15) * 0x846CA68BU;
  return h ^ h >> 16;
}

float Value(int64_t tensor, int64_t element) {
  const uint32_t h = Mix(static_cast<uint32_t>(tensor), static_cast<uint32_t>(element));
  return static_cast<float>(static_cast<int32_t>(h % (1U << 19)) - (1 << 18)) / (1 << 20);
}

float GoldenWeight(const TensorSpec& spec, int64_t tensor, int64_t element) {
  return (spec.axis == SliceAxis::kNone ? 1.0F : 0.0F) + Value(tensor, element);
}

ModelConfig GoldenModel() {
  ModelConfig model;
  model.layers = 3;
  model.hidden = 64;
  model.heads = 8;
  model.kv_heads = 4;
  model.head_dim = 16;
  model.ffn = 96;
  model.vocab = 101;
  model.norm_eps = 1e-5;
  return model;
}

ModelGradients RunModel(const ModelRun& run) {
  const absl::Status valid = ValidateModel(run.model, run.shards);
  EXPECT_TRUE(valid.ok()) << valid;
  const AtomTable table(ModelTensors(run.model, run.shards), kAtomElements);
  std::vector<int32_t> tokens, targets;
  for (int64_t i = 0; i < run.samples * (run.context + 1); ++i) {
    const auto token = static_cast<int32_t>(Mix(kTokenStream, static_cast<uint32_t>(i)) %
                                            static_cast<uint32_t>(run.model.vocab));
    if (i % (run.context + 1) < run.context) tokens.push_back(token);
    if (i % (run.context + 1) > 0) targets.push_back(token);
  }
  ThreadAxis axis(run.tensor_ranks);
  std::vector<std::unique_ptr<RankRun>> ranks;
  std::vector<std::thread> threads;
  for (int64_t t = 0; t < run.tensor_ranks; ++t)
    ranks.push_back(std::make_unique<RankRun>(run, table, t, &axis, tokens, targets));
  for (const auto& rank : ranks)
    threads.emplace_back([one = rank.get()] {
      const absl::Status status = one->Run();
      EXPECT_TRUE(status.ok()) << status;
    });
  for (std::thread& thread : threads) thread.join();

  ModelGradients result{.loss = ranks[0]->loss(), .tensors = table.tensors()};
  for (const TensorSpec& spec : table.tensors())
    result.values.emplace_back(static_cast<size_t>(spec.size()), kPoison);
  for (const auto& rank : ranks) {
    EXPECT_EQ(std::bit_cast<uint64_t>(rank->loss()), std::bit_cast<uint64_t>(result.loss));
    rank->access().Export(result);
  }
  for (size_t t = 0; t < result.values.size(); ++t)
    for (float value : result.values[t])
      if (std::isnan(value)) {
        ADD_FAILURE() << result.tensors[t].name << " has elements that no rank holds";
        break;
      }
  return result;
}

void ExpectSame(const ModelGradients& got, const ModelGradients& expected) {
  EXPECT_EQ(std::bit_cast<uint64_t>(got.loss), std::bit_cast<uint64_t>(expected.loss))
      << got.loss << " and " << expected.loss;
  ASSERT_EQ(got.values.size(), expected.values.size());
  for (size_t t = 0; t < got.values.size(); ++t) {
    const auto &a = got.values[t], &b = expected.values[t];
    ASSERT_EQ(a.size(), b.size());
    size_t differ = 0;
    for (size_t i = 0; i < a.size(); ++i)
      differ += std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i]);
    EXPECT_EQ(differ, 0) << expected.tensors[t].name << ": elements of " << a.size();
  }
}

void ExpectClose(const ModelGradients& got, const ModelGradients& expected, double loss,
                 double gradient) {
  EXPECT_NEAR(got.loss, expected.loss, loss * expected.loss);
  ASSERT_EQ(got.values.size(), expected.values.size());
  for (size_t t = 0; t < got.values.size(); ++t) {
    const auto &a = got.values[t], &b = expected.values[t];
    ASSERT_EQ(a.size(), b.size());
    double error = 0, size = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      error += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
      size += std::pow(static_cast<double>(b[i]), 2);
    }
    EXPECT_LE(std::sqrt(error), gradient * std::sqrt(size))
        << expected.tensors[t].name << ": relative error " << std::sqrt(error / size);
  }
}

}  // namespace perdure
