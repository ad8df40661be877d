// Sharding must not show: at every D and ZeRO stage, sums are the ordered fp32 sums of leaves, and
// parameters and optimizer state are those of one array updated by one rank.
#include "runtime/train/sharded_state.h"

#include <gtest/gtest.h>

#include <atomic>
#include <barrier>
#include <bit>
#include <cmath>
#include <cstring>
#include <future>
#include <numeric>

#include "model/parameters.h"
#include "runtime/base/random.h"
#include "runtime/base/status.h"
#include "runtime/comm/group.h"
#include "tests/kernels/device_ops.h"
#include "tests/model/counting_ops.h"
#include "tests/train/transport_threads.h"

namespace perdure {
namespace {

ModelConfig Small() {
  ModelConfig model;
  model.layers = 5;   // More buckets than may be exchanged at once.
  model.hidden = 20;  // Norms of 20 elements: pieces are padded.
  model.heads = 2;
  model.kv_heads = 2;
  model.head_dim = 8;
  model.ffn = 26;
  model.vocab = 31;
  return model;
}

struct Layout {
  int replicas = 1;
  int zero = 1;
  DType dtype = DType::kF32;
  int64_t atom_elements = 50;
  double beta1 = 0.9;
};

AtomTable TableOf(const Layout& setup) {
  return AtomTable(ModelTensors(Small(), 2), setup.atom_elements);
}

std::vector<Bucket> BucketsOf(const AtomTable& table) {
  std::vector<int64_t> layers(static_cast<size_t>(Small().layers) + 2);
  std::iota(layers.begin(), layers.end(), -1);
  return MakeBuckets(table, Small(), {.shards = 2}, layers);
}

ShardedState::Options OptionsOf(const Layout& setup) {
  ShardedState::Options options{.dtype = setup.dtype, .zero = setup.zero};
  options.optimizer.beta1 = setup.beta1;
  return options;
}

constexpr uint64_t kParameterStream = 1ULL << 32;

// Signed values of very different sizes, so that another order of sums gives other bits.
float Wild(uint64_t stream, int64_t atom, int64_t element) {
  const auto bits = RandomBits(stream, RandomPurpose::kTest, static_cast<uint64_t>(atom),
                               static_cast<uint64_t>(element));
  const float size = std::ldexp(1.0F + static_cast<float>(bits[0] >> 8) * 0x1p-24F,
                                static_cast<int>(bits[1] % 16) - 12);
  return bits[2] % 2 == 0 ? size : -size;
}
uint64_t LeafStream(int64_t step, int64_t leaf) {
  return static_cast<uint64_t>(1000 * step + leaf + 1);
}

// The same training with one array and no sharding.
class Reference {
 public:
  Reference(const Layout& setup, const AtomTable& table)
      : setup_(setup), table_(table), ops_(NewCpuOps(1)) {
    for (size_t a = 0; a < table.atoms().size(); ++a) {
      const auto count = static_cast<size_t>(table.atoms()[a].count);
      AtomArrays arrays{.sum = std::vector<float>(count),
                        .master = std::vector<float>(count),
                        .exp_avg = std::vector<float>(count),
                        .exp_avg_sq = std::vector<float>(count),
                        .parameter = std::vector<char>(count * SizeOf(setup.dtype))};
      for (size_t i = 0; i < count; ++i)
        arrays.master[i] = Wild(kParameterStream, static_cast<int64_t>(a), static_cast<int64_t>(i));
      atoms_.push_back(std::move(arrays));
      ops_->Copy(ConstMatrix(atoms_[a].master.data(), DType::kF32, 1, table.atoms()[a].count),
                 ParameterOf(a));
    }
  }

  void Sum(int64_t step, int64_t leaves) {
    for (size_t a = 0; a < atoms_.size(); ++a)
      for (size_t i = 0; i < atoms_[a].sum.size(); ++i) {
        float sum = 0;
        for (int64_t leaf = 0; leaf < leaves; ++leaf)
          sum += Wild(LeafStream(step, leaf), static_cast<int64_t>(a), static_cast<int64_t>(i));
        atoms_[a].sum[i] = sum;
      }
  }
  double SquareOf(int64_t atom) const {
    const std::vector<float>& sum = atoms_[static_cast<size_t>(atom)].sum;
    double square = 0;
    const ElementRun run{.begin = 0, .count = static_cast<int64_t>(sum.size())};
    ops_->SumsOfSquares(sum.data(), {&run, 1}, &square);
    return square;
  }
  void Update(int64_t step, double rate, double scale) {
    const OptimizerConfig o = OptionsOf(setup_).optimizer;
    for (size_t a = 0; a < atoms_.size(); ++a) {
      const auto tensor = static_cast<size_t>(table_.atoms()[a].tensor);
      AtomArrays& x = atoms_[a];
      ops_->AdamW({.step = step,
                   .rate = rate,
                   .beta1 = o.beta1,
                   .beta2 = o.beta2,
                   .eps = o.eps,
                   .weight_decay = table_.tensors()[tensor].decays ? o.weight_decay : 0,
                   .gradient_scale = scale},
                  x.sum.data(), x.master.data(), x.exp_avg.data(), x.exp_avg_sq.data(),
                  ParameterOf(a));
    }
  }

  struct AtomArrays {
    std::vector<float> sum, master, exp_avg, exp_avg_sq;
    std::vector<char> parameter;  // In the compute dtype.
  };
  const AtomArrays& At(int64_t atom) const { return atoms_[static_cast<size_t>(atom)]; }

 private:
  Matrix ParameterOf(size_t atom) {
    return Matrix(atoms_[atom].parameter.data(), setup_.dtype, 1, table_.atoms()[atom].count);
  }
  Layout setup_;
  const AtomTable& table_;
  std::unique_ptr<Ops> ops_;
  std::vector<AtomArrays> atoms_;
};

// One replica's thread, on any ops. Counts what is wrong rather than stopping: its peers wait for
// it.
class Replica {
 public:
  Replica(const Layout& setup, const AtomTable& table, Transport* transport, Ops* ops)
      : setup_(setup),
        table_(table),
        group_(transport, Members(setup), 5),
        ops_(ops),
        reference_(setup, table) {
    state_ =
        std::make_unique<ShardedState>(OptionsOf(setup), BucketsOf(table), &table, ops_, &group_);
  }

  const ShardedState& state() const { return *state_; }

  absl::Status Train(const std::vector<int64_t>& leaves_of_steps) {
    RETURN_IF_ERROR(state_->FillOwned([&](std::span<AtomState> atoms) {
      for (const AtomState& atom : atoms) {
        const std::vector<float>& master = reference_.At(atom.atom).master;
        std::copy(master.begin(), master.end(), atom.parts[0]);
        for (float* moment : {atom.parts[1], atom.parts[2]})
          std::fill_n(moment, master.size(), 0.0F);
      }
      return absl::OkStatus();
    }));
    RETURN_IF_ERROR(state_->ShareState());
    if (const absl::Status status = state_->PublishParameters(); !status.ok()) return status;
    int64_t step = 0;
    for (const int64_t leaves : leaves_of_steps)
      if (const absl::Status status = Step(++step, leaves); !status.ok()) return status;
    return state_->Quiesce();
  }

 private:
  static std::vector<int> Members(const Layout& setup) {
    std::vector<int> members(static_cast<size_t>(setup.replicas));
    std::iota(members.begin(), members.end(), 0);
    return members;
  }

  absl::Status Step(int64_t step, int64_t leaves) {
    if (const absl::Status status = state_->BeginStep(leaves); !status.ok()) return status;
    EXPECT_EQ(state_->rounds(), (leaves + setup_.replicas - 1) / setup_.replicas);
    for (int64_t round = 0; round < state_->rounds(); ++round)
      if (const absl::Status status = Leaf(step, round, leaves); !status.ok()) return status;
    reference_.Sum(step, leaves);
    const absl::StatusOr<std::vector<double>> squares = state_->FinishGradients();
    if (!squares.ok()) return squares.status();
    const std::vector<int64_t> owned = state_->OwnedAtomIndices(group_.index());
    EXPECT_EQ(squares->size(), owned.size());
    for (size_t i = 0; i < owned.size(); ++i)
      EXPECT_EQ(std::bit_cast<uint64_t>((*squares)[i]),
                std::bit_cast<uint64_t>(reference_.SquareOf(owned[i])));
    const double rate = 0.01 / static_cast<double>(step), scale = step == 1 ? 1.0 : 0.7;
    if (const absl::Status status = state_->Update(step, rate, scale); !status.ok()) return status;
    reference_.Update(step, rate, scale);
    CheckState(scale);
    return CheckAllWeights();
  }

  absl::Status Leaf(int64_t step, int64_t round, int64_t leaves) {
    const auto buckets = static_cast<int>(state_->buckets().size());
    for (int b = 0; b < buckets; ++b)
      if (const absl::Status status = CheckWeights(b); !status.ok()) return status;
    const int64_t leaf = round * setup_.replicas + group_.index();
    for (int b = buckets - 1; b >= 0; --b) {
      if (const absl::Status status = CheckWeights(b); !status.ok()) return status;
      if (leaf < leaves) {
        const absl::StatusOr<float*> gradients = state_->Gradients(b);
        if (!gradients.ok()) return gradients.status();
        const Bucket& bucket = state_->buckets()[static_cast<size_t>(b)];
        std::vector<float> host(static_cast<size_t>(bucket.size));
        for (const PlacedAtom& atom : bucket.atoms)
          for (int64_t i = 0; i < atom.count; ++i)
            host[static_cast<size_t>(atom.offset + i)] = Wild(LeafStream(step, leaf), atom.atom, i);
        ops_->Upload(host.data(), host.size() * sizeof(float), *gradients);
        RETURN_IF_ERROR(ops_->Sync());
      }
      if (const absl::Status status = state_->GradientsReady(b); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status CheckWeights(int b) {
    const absl::StatusOr<const void*> weights = state_->Weights(b);
    if (!weights.ok()) return weights.status();
    int different = 0;
    const Bucket& bucket = state_->buckets()[static_cast<size_t>(b)];
    const std::vector<char> host =
        Read(*weights, static_cast<size_t>(bucket.size) * SizeOf(setup_.dtype));
    for (const PlacedAtom& atom : bucket.atoms) {
      const std::vector<char>& expected = reference_.At(atom.atom).parameter;
      different +=
          std::memcmp(host.data() + static_cast<size_t>(atom.offset) * SizeOf(setup_.dtype),
                      expected.data(), expected.size()) != 0;
    }
    EXPECT_EQ(different, 0) << "atoms' weights in bucket " << b << " of replica " << group_.index();
    state_->Release(b);
    return absl::OkStatus();
  }
  absl::Status CheckAllWeights() {
    for (int b = 0; b < static_cast<int>(state_->buckets().size()); ++b)
      if (const absl::Status status = CheckWeights(b); !status.ok()) return status;
    return absl::OkStatus();
  }

  void CheckState(double scale) {
    const std::vector<AtomState> kept = state_->KeptAtoms(), owned = state_->OwnedAtoms();
    EXPECT_EQ(kept.size(), setup_.zero == 0 ? table_.atoms().size() : owned.size());
    for (const std::vector<AtomState>* atoms : {&kept, &owned})
      for (const AtomState& atom : *atoms) {
        const Reference::AtomArrays& expected = reference_.At(atom.atom);
        // Without momentum, the first moment is the sum itself.
        if (setup_.beta1 == 0 && scale == 1) {
          EXPECT_TRUE(SameBytes(atom.parts[1], expected.sum));
        }
        EXPECT_TRUE(SameBytes(atom.parts[0], expected.master)) << "atom " << atom.atom;
        EXPECT_TRUE(SameBytes(atom.parts[1], expected.exp_avg)) << "atom " << atom.atom;
        EXPECT_TRUE(SameBytes(atom.parts[2], expected.exp_avg_sq)) << "atom " << atom.atom;
      }
  }

  std::vector<char> Read(const void* device, size_t bytes) {
    std::vector<char> host(bytes);
    ops_->Download(device, bytes, host.data());
    EXPECT_TRUE(ops_->Sync().ok());
    return host;
  }
  bool SameBytes(const void* device, const std::vector<float>& expected) {
    const size_t bytes = expected.size() * sizeof(float);
    return std::memcmp(Read(device, bytes).data(), expected.data(), bytes) == 0;
  }

  Layout setup_;
  const AtomTable& table_;
  Group group_;
  Ops* ops_;
  Reference reference_;
  std::unique_ptr<ShardedState> state_;
};

void TrainEverywhere(const Layout& setup, const std::vector<int64_t>& leaves_of_steps) {
  SCOPED_TRACE(testing::Message() << "D " << setup.replicas << ", ZeRO " << setup.zero
                                  << ", atoms of " << setup.atom_elements);
  const AtomTable table = TableOf(setup);
  RunTransportThreads(setup.replicas, [&](Transport* transport) {
    CountingOps ops;
    Replica replica(setup, table, transport, &ops);
    const ShardedState::Memory memory = ShardedState::MemoryOf(
        OptionsOf(setup), replica.state().buckets(), setup.replicas, transport->rank());
    EXPECT_EQ(static_cast<int64_t>(ops.bytes()),
              memory.parameters + memory.gradients + memory.optimizer + memory.buffers);
    const absl::Status status = replica.Train(leaves_of_steps);
    EXPECT_TRUE(status.ok()) << status;
  });
}

// Atoms so large that embedding and head are one atom a slice: replicas own nothing of them.
constexpr int64_t kLargeAtoms = 100000;

TEST(ShardedState, EveryLayoutComputesTheSame) {
  for (const int replicas : {1, 2, 3, 5})
    for (const int zero : {0, 1, 2, 3})
      for (const int64_t atom_elements : {int64_t{50}, kLargeAtoms})
        TrainEverywhere({.replicas = replicas, .zero = zero, .atom_elements = atom_elements},
                        {1, 2, 3, 4, 5, 6, 7});
}

TEST(ShardedState, EveryLayoutComputesTheSameInBF16) {
  for (const int replicas : {1, 2, 3, 5})
    for (const int zero : {0, 1, 2, 3})
      TrainEverywhere({.replicas = replicas, .zero = zero, .dtype = DType::kBF16}, {7, 1, 4});
}

TEST(ShardedState, SumsAreOfLeavesInOrder) {
  for (const int replicas : {1, 2, 3, 5})
    for (const int zero : {0, 3})
      TrainEverywhere({.replicas = replicas, .zero = zero, .beta1 = 0}, {7, 3});
}

// Were the order free, the test above could not fail.
TEST(ShardedState, TheLeavesTellOrdersApart) {
  int differ = 0;
  for (int64_t i = 0; i < 100; ++i) {
    float forward = 0, backward = 0;
    for (int64_t leaf = 0; leaf < 7; ++leaf) forward += Wild(LeafStream(1, leaf), 3, i);
    for (int64_t leaf = 7; leaf-- > 0;) backward += Wild(LeafStream(1, leaf), 3, i);
    differ += forward != backward;
  }
  EXPECT_GT(differ, 30);
}

TEST(ShardedState, ComputesTheSameInDeviceMemory) {
  for (const int zero : {0, 1, 2, 3})
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const Layout setup{.zero = zero, .dtype = dtype};
      const AtomTable table = TableOf(setup);
      RunTransportThreads(1, [&](Transport* transport) {
        DeviceOps ops;
        Replica replica(setup, table, transport, &ops);
        const absl::Status status = replica.Train({3, 1, 2});
        EXPECT_TRUE(status.ok()) << status;
      });
    }
}

// The host stands still once a step: for the squares.
TEST(ShardedState, WaitsForTheDeviceOnce) {
  for (const int zero : {0, 1, 2, 3}) {
    const Layout setup{.zero = zero};
    const AtomTable table = TableOf(setup);
    RunTransportThreads(1, [&](Transport* transport) {
      Group group(transport, {0}, 5);
      DeviceOps ops;
      ShardedState state(OptionsOf(setup), BucketsOf(table), &table, &ops, &group);
      const auto buckets = static_cast<int>(state.buckets().size());
      for (int64_t step = 1; step < 4; ++step) {
        const int before = ops.syncs();
        ASSERT_TRUE(state.BeginStep(2).ok());
        for (int round = 0; round < 2; ++round)
          for (int b = buckets - 1; b >= 0; --b) {
            EXPECT_TRUE(state.Weights(b).ok());
            EXPECT_TRUE(state.Gradients(b).ok());
            EXPECT_TRUE(state.GradientsReady(b).ok());
          }
        EXPECT_TRUE(state.FinishGradients().ok());
        EXPECT_TRUE(state.Update(step, 0.1, 1).ok());
        EXPECT_EQ(ops.syncs() - before, 1);
        // Atoms that neighbour each other are updated together.
        EXPECT_LT(4 * ops.queued(), table.atoms().size());
      }
    });
  }
}

TEST(ShardedState, OwnersShareTheAtoms) {
  for (const int replicas : {1, 2, 3, 5}) {
    const Layout setup{.replicas = replicas, .zero = 2};
    const AtomTable table = TableOf(setup);
    std::vector<std::atomic<int>> owners(table.atoms().size());
    RunTransportThreads(replicas, [&](Transport* transport) {
      std::vector<int> members(static_cast<size_t>(replicas));
      std::iota(members.begin(), members.end(), 0);
      Group group(transport, members, 5);
      CountingOps ops;
      ShardedState state(OptionsOf(setup), BucketsOf(table), &table, &ops, &group);
      const std::vector<int64_t> indices = state.OwnedAtomIndices(group.index());
      const std::vector<AtomState> atoms = state.OwnedAtoms();
      ASSERT_EQ(indices.size(), atoms.size());
      for (size_t i = 0; i < atoms.size(); ++i) {
        EXPECT_EQ(indices[i], atoms[i].atom);
        ++owners[static_cast<size_t>(indices[i])];
      }
    });
    for (size_t a = 0; a < owners.size(); ++a) EXPECT_EQ(owners[a], 1) << "atom " << a;
  }
}

// What a rank keeps of others' atoms is what it would keep if they were its own.
TEST(ShardedState, SharedAtomsAreThoseThatAreKept) {
  for (const DType dtype : {DType::kF32, DType::kBF16})
    for (const int zero : {0, 1, 2, 3}) {
      const Layout setup{.replicas = 3, .zero = zero, .dtype = dtype};
      const AtomTable table = TableOf(setup);
      const auto shared = ShardedState::SharedParts(zero, dtype);
      EXPECT_EQ(shared[0], zero == 0 || (zero < 3 && dtype == DType::kF32));
      EXPECT_EQ(shared[1], zero == 0);
      EXPECT_EQ(shared[2], zero == 0);
      RunTransportThreads(3, [&](Transport* transport) {
        Group group(transport, {0, 1, 2}, 5);
        CountingOps ops;
        ShardedState state(OptionsOf(setup), BucketsOf(table), &table, &ops, &group);
        std::vector<AtomState> kept(table.atoms().size());
        for (const AtomState& atom : state.KeptAtoms()) kept[static_cast<size_t>(atom.atom)] = atom;
        for (int d = 0; d < 3; ++d) {
          const std::vector<AtomState> atoms = state.SharedAtoms(d);
          const std::vector<int64_t> indices = state.OwnedAtomIndices(d);
          ASSERT_EQ(atoms.size(), indices.size());
          for (size_t i = 0; i < atoms.size(); ++i) {
            EXPECT_EQ(atoms[i].atom, indices[i]);
            const AtomState& own = kept[static_cast<size_t>(indices[i])];
            for (size_t part = 0; part < kStatePartCount; ++part) {
              EXPECT_EQ(atoms[i].parts[part] != nullptr, shared[part]);
              if (shared[part] && (zero == 0 || d == group.index())) {
                EXPECT_EQ(atoms[i].parts[part], own.parts[part]);
              }
            }
          }
        }
        EXPECT_FALSE(state.gathering());
      });
    }
}

TEST(ShardedState, ALostReplicaIsAnError) {
  for (const int zero : {0, 1, 2, 3}) {
    const Layout setup{.replicas = 2, .zero = zero};
    const AtomTable table = TableOf(setup);
    RunTransportThreads(2, [&](Transport* transport) {
      if (transport->rank() == 1) return;  // And so it is gone.
      CountingOps ops;
      Replica replica(setup, table, transport, &ops);
      EXPECT_EQ(replica.Train({2, 2}).code(), absl::StatusCode::kUnavailable) << "ZeRO " << zero;
    });
  }
}

// After an error a rank drops its state while its transport lives on: what a peer sends afterwards
// must not be written where the memory was.
TEST(ShardedState, IsDroppedWithoutLeavingReceivesBehind) {
  const Layout setup{.replicas = 2};
  const AtomTable table = TableOf(setup);
  std::promise<void> promise;
  const std::shared_future<void> dropped = promise.get_future().share();
  std::barrier<> end(2);
  RunTransportThreads(2, [&](Transport* transport) {
    const int rank = transport->rank();
    Group group(transport, {0, 1}, 5);
    CountingOps ops;
    auto state =
        std::make_unique<ShardedState>(OptionsOf(setup), BucketsOf(table), &table, &ops, &group);
    ASSERT_TRUE(state->BeginStep(2).ok());
    if (rank == 1) dropped.wait();
    for (const int bucket : {1, 2}) {
      EXPECT_TRUE(state->Gradients(bucket).ok());
      EXPECT_TRUE(state->GradientsReady(bucket).ok());
    }
    if (rank == 0) {
      state.reset();
      EXPECT_EQ(ops.bytes(), 0);
      promise.set_value();
    } else {
      EXPECT_EQ(state->FinishGradients().status().code(), absl::StatusCode::kUnavailable);
    }
    end.arrive_and_wait();
  });
}

TEST(CutBucket, RunsAreBalancedContiguousAndRotate) {
  for (const int64_t atom_elements : {int64_t{7}, int64_t{50}, kLargeAtoms}) {
    const AtomTable table = TableOf({.atom_elements = atom_elements});
    for (const Bucket& bucket : BucketsOf(table)) {
      int64_t total = 0, largest = 0;
      for (const PlacedAtom& atom : bucket.atoms) {
        total += atom.count;
        largest = std::max(largest, atom.count);
      }
      for (const int replicas : {1, 2, 3, 5, 64}) {
        const std::vector<OwnedRun> runs = CutBucket(bucket, replicas, 0);
        int64_t next = 0;
        for (const OwnedRun& run : runs) {
          EXPECT_EQ(run.first_atom, next);
          next = run.last_atom;
          int64_t elements = 0;
          for (int64_t a = run.first_atom; a < run.last_atom; ++a)
            elements += bucket.atoms[static_cast<size_t>(a)].count;
          EXPECT_LE(elements, total / replicas + largest + 1);
          if (run.first_atom == run.last_atom) {
            EXPECT_EQ(run.size(), 0);
            continue;
          }
          const PlacedAtom& last = bucket.atoms[static_cast<size_t>(run.last_atom - 1)];
          EXPECT_EQ(run.begin, bucket.atoms[static_cast<size_t>(run.first_atom)].offset);
          EXPECT_EQ(run.end, last.offset + last.count);
        }
        EXPECT_EQ(next, static_cast<int64_t>(bucket.atoms.size()));
        const std::vector<OwnedRun> rotated = CutBucket(bucket, replicas, 2);
        for (int d = 0; d < replicas; ++d)
          EXPECT_EQ(rotated[static_cast<size_t>((d + 2) % replicas)].first_atom,
                    runs[static_cast<size_t>(d)].first_atom);
      }
    }
  }
}

}  // namespace
}  // namespace perdure
