// Bits flipped on purpose, in whole trainings of rank threads: each is noticed before a step is
// finished with it, the rank whose memory it was says so and ends, the others lose a peer, and what
// goes on from the snapshots has the bits of a run that nobody disturbed.
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <bit>
#include <cmath>
#include <filesystem>
#include <limits>
#include <mutex>

#include "runtime/base/status.h"
#include "runtime/train/corruption.h"
#include "runtime/train/judge_step.h"
#include "tests/kernels/device_ops.h"
#include "tests/kernels/forwarding_ops.h"
#include "tests/train/forwarding_host.h"
#include "tests/train/recovery_world.h"

#if defined(__SANITIZE_THREAD__)
// A planted flip comes while a snapshot is copied, as those of memory do.
extern "C" const char* __tsan_default_suppressions() {
  return "race:perdure::ShardedState::FlipBit\n";
}
#endif

namespace perdure {
namespace {

namespace fs = std::filesystem;

struct PlantedFlip {
  int rank = 0;
  int64_t step = 0;
  Flip flip;
};

class PlantingHost final : public ForwardingHost {
 public:
  PlantingHost(RankHost* host, int rank, const PlantedFlip& planted)
      : ForwardingHost(host), rank_(rank), planted_(planted) {}
  std::vector<Flip> Planted(int64_t step) override {
    return rank_ == planted_.rank && step == planted_.step ? std::vector{planted_.flip}
                                                           : std::vector<Flip>();
  }

 private:
  const int rank_;
  const PlantedFlip planted_;
};

LayoutConfig At(int64_t tensor, int64_t pipeline, int64_t data, int64_t zero) {
  return {.tensor = tensor, .pipeline = pipeline, .data = data, .zero = zero, .transport = "local"};
}

class IntegrityTest : public testing::Test {
 protected:
  const TrainingResult& Reference(const std::string& dtype) {
    auto [at, fresh] = references_.try_emplace(dtype);
    if (fresh) {
      RunConfig config = TinyConfig(dtype);
      config.checkpoint.every_steps = 1;
      config.integrity.check = false;
      at->second = Train(config, directory_, directory_ + "/reference-" + dtype, "", -1);
      EXPECT_TRUE(at->second.status.ok()) << at->second.status;
    }
    return at->second;
  }
  std::string World(const std::string& name) const { return folder_.World(name); }
  void ExpectCaught(
      const std::string& dtype, const LayoutConfig& layout, const PlantedFlip& planted,
      const OpsFactory& make_ops = [] { return NewCpuOps(1); });
  void ExpectTheSameAfter(RecoveryWorld& world, const TrainingJob& first, int64_t step,
                          const std::string& dtype);

  const TinyFolder folder_{"integrity_test"};
  const std::string directory_ = folder_.path();
  std::map<std::string, TrainingResult> references_;
  int worlds_ = 0;
};

// What goes on from the snapshots of `step` ends in the reference's bits.
void IntegrityTest::ExpectTheSameAfter(RecoveryWorld& world, const TrainingJob& first, int64_t step,
                                       const std::string& dtype) {
  const TrainingResult& reference = Reference(dtype);
  TrainingJob second = world.Resume(2, first.config.layout, 1, first, step);
  second.make_ops = first.make_ops;
  const TrainingResult rest = RunJob(second);
  ASSERT_TRUE(rest.status.ok()) << rest.status;
  EXPECT_EQ(rest.certificate.Hex(), reference.certificate.Hex());
  const std::vector<uint64_t> expected(reference.loss_bits.begin() + step,
                                       reference.loss_bits.end());
  EXPECT_EQ(rest.loss_bits, expected);
}

void IntegrityTest::ExpectCaught(const std::string& dtype, const LayoutConfig& layout,
                                 const PlantedFlip& planted, const OpsFactory& make_ops) {
  SCOPED_TRACE(fmt::format("{} t{}p{}d{}z{}, rank {}, step {}, {} element {} bit {}", dtype,
                           layout.tensor, layout.pipeline, layout.data, layout.zero, planted.rank,
                           planted.step, NameOf(planted.flip.place), planted.flip.element,
                           planted.flip.bit));
  const TrainingResult& reference = Reference(dtype);
  RecoveryWorld world(World(fmt::format("world{}", ++worlds_)), TinyConfig(dtype));
  TrainingJob first = world.Job(1, layout, 1);
  first.make_ops = make_ops;
  first.wrap_host = [&](int rank, RankHost* host) {
    return std::make_unique<PlantingHost>(host, rank, planted);
  };
  const TrainingResult result = RunJob(first);
  for (int rank = 0; rank < layout.ranks(); ++rank) {
    const absl::Status& status = result.statuses[static_cast<size_t>(rank)];
    if (rank == planted.rank)
      EXPECT_TRUE(IsCorruption(status)) << "rank " << rank << ": " << status;
    else
      EXPECT_TRUE(absl::IsUnavailable(status)) << "rank " << rank << ": " << status;
  }
  // Nobody was told a number that the undisturbed run does not have.
  EXPECT_LE(result.finished, planted.step);
  EXPECT_EQ(result.loss_bits,
            std::vector<uint64_t>(
                reference.loss_bits.begin(),
                reference.loss_bits.begin() + static_cast<int64_t>(result.loss_bits.size())));
  for (size_t i = 0; i < result.grad_norms.size(); ++i)
    EXPECT_EQ(result.grad_norms[i], reference.grad_norms[i]);
  const std::optional<int64_t> step = world.NewestWhole(first);
  ASSERT_TRUE(step.has_value());
  EXPECT_GE(*step, planted.step - 2);
  EXPECT_LT(*step, planted.step);
  const absl::StatusOr<Digest> held = world.CertificateOf(first, *step);
  ASSERT_TRUE(held.ok()) << held.status();
  EXPECT_EQ(held->Hex(), reference.certificates.at(*step).Hex());
  ExpectTheSameAfter(world, first, *step, dtype);
}

PlantedFlip At(int rank, int64_t step, FlipPlace place, int64_t element, int bit) {
  return {.rank = rank, .step = step, .flip = {.place = place, .element = element, .bit = bit}};
}

constexpr FlipPlace kEverywhere[] = {
    FlipPlace::kGradient, FlipPlace::kReceived, FlipPlace::kSum, FlipPlace::kParameter,
    FlipPlace::kExpAvg,   FlipPlace::kExpAvgSq, FlipPlace::kCopy};

TEST_F(IntegrityTest, EveryPlaceUnderEveryStage) {
  int64_t element = 0;
  for (const int64_t zero : {0, 1, 2, 3})
    for (const FlipPlace place : kEverywhere)
      ExpectCaught("fp32", At(1, 1, 2, zero), At(1, 4, place, element += 1237, 0));
}

TEST_F(IntegrityTest, TheSameInBf16) {
  int64_t element = 0;
  for (const int64_t zero : {0, 1, 2, 3})
    for (const FlipPlace place :
         {FlipPlace::kGradient, FlipPlace::kParameter, FlipPlace::kExpAvg, FlipPlace::kCopy})
      ExpectCaught("bf16", At(1, 1, 3, zero), At(1, 3, place, element += 733, 0));
}

// Whichever bit it is, whichever rank, also rank 0, and one alone.
TEST_F(IntegrityTest, AnyBitOfAnyRank) {
  for (const int bit : {0, 1, 15, 22, 23, 30, 31})
    ExpectCaught("fp32", At(1, 1, 2, 1),
                 At(0, 3, kEverywhere[bit % kFlipPlaces], 100 * bit + 7, bit));
  ExpectCaught("fp32", At(2, 1, 2, 1), At(3, 5, FlipPlace::kGradient, 5, 3));
  ExpectCaught("fp32", At(1, 2, 2, 3), At(2, 5, FlipPlace::kCopy, 77, 30));
  ExpectCaught("fp32", At(1, 2, 1, 1), At(1, 5, FlipPlace::kExpAvg, 99, 1));
  // The last step of a phase, and the first of the next.
  ExpectCaught("fp32", At(1, 1, 2, 2), At(1, 8, FlipPlace::kParameter, 99, 1));
  ExpectCaught("fp32", At(1, 1, 2, 2), At(1, 9, FlipPlace::kParameter, 99, 1));
}

TEST_F(IntegrityTest, InDeviceMemory) {
  const OpsFactory device = [] { return std::make_unique<DeviceOps>(); };
  for (const char* dtype : {"fp32", "bf16"})
    for (const int64_t zero : {0, 1, 3})
      for (const FlipPlace place : {FlipPlace::kGradient, FlipPlace::kSum, FlipPlace::kParameter,
                                    FlipPlace::kExpAvgSq, FlipPlace::kCopy}) {
        RunConfig config = TinyConfig(dtype);
        config.layout = At(1, 1, 1, zero);
        TrainingJob job{.config = config,
                        .data_directory = directory_,
                        .run_directory = directory_ + fmt::format("/device{}", ++worlds_),
                        .make_ops = device};
        const PlantedFlip planted = At(0, 3, place, 1000, 2);
        job.wrap_host = [&](int rank, RankHost* host) {
          return std::make_unique<PlantingHost>(host, rank, planted);
        };
        const TrainingResult result = RunJob(job);
        EXPECT_TRUE(IsCorruption(result.status))
            << dtype << ", ZeRO " << zero << ", " << NameOf(place) << ": " << result.status;
        EXPECT_EQ(result.finished, 2);
      }
}

// ---- wrong arithmetic

thread_local int this_rank = -1;

// The next so many gradients of the embedding are wrong; negative: all are.
class WrongOps final : public ForwardingOps {
 public:
  explicit WrongOps(std::atomic<int>* wrongs) : ForwardingOps(NewCpuOps(1)), wrongs_(wrongs) {}
  void EmbeddingBackward(const int32_t* tokens, ConstMatrix dout, int64_t row_begin,
                         Matrix dtable) override {
    ops_->EmbeddingBackward(tokens, dout, row_begin, dtable);
    if (*wrongs_ == 0) return;
    if (*wrongs_ > 0) --*wrongs_;
    *static_cast<float*>(dtable.data) += 0.125F;
  }

 private:
  std::atomic<int>* wrongs_;
};

// From step `from` on rank 1 adds up wrongly, `wrongs` times.
TrainingResult RunWrong(const std::string& directory, const RunConfig& config, int64_t from,
                        int wrongs) {
  std::atomic<int> left = 0;
  class Host final : public ForwardingHost {
   public:
    Host(RankHost* host, int64_t from, int wrongs, std::atomic<int>* left)
        : ForwardingHost(host), from_(from), wrongs_(wrongs), left_(left) {}
    std::vector<Flip> Planted(int64_t step) override {
      if (step == from_) *left_ = wrongs_;
      return {};
    }

   private:
    const int64_t from_;
    const int wrongs_;
    std::atomic<int>* left_;
  };
  TrainingJob job{.config = config, .data_directory = directory, .run_directory = directory + "/w"};
  job.wrap_host = [&](int rank, RankHost* host) -> std::unique_ptr<RankHost> {
    this_rank = rank;
    if (rank != 1) return std::make_unique<ForwardingHost>(host);
    return std::make_unique<Host>(host, from, wrongs, &left);
  };
  job.make_ops = [&]() -> std::unique_ptr<Ops> {
    if (this_rank != 1) return NewCpuOps(1);
    return std::make_unique<WrongOps>(&left);
  };
  return RunJob(job);
}

TEST_F(IntegrityTest, AnAuditFindsWhoComputesWrongly) {
  for (const int64_t data : {2, 3}) {
    RunConfig config = TinyConfig();
    config.integrity.audit_every = 2;
    config.layout = At(1, 1, data, 1);
    // Up to a leaf that is audited: of the five leaves of step 6, of two micro-batches each, rank
    // 1's in round 5 mod 2 or 5 mod 1.
    const TrainingResult once = RunWrong(directory_, config, 6, data == 2 ? 3 : 1);
    SCOPED_TRACE(fmt::format("D {}: {} | {}", data, once.statuses[0].ToString(),
                             once.statuses[1].ToString()));
    EXPECT_TRUE(IsCorruption(once.statuses[1]));
    EXPECT_TRUE(absl::IsUnavailable(once.statuses[0]));
    EXPECT_EQ(once.finished, 5);
  }
  // For ever: of three replicas two agree; of two nobody knows.
  RunConfig config = TinyConfig();
  config.integrity.audit_every = 2;
  config.layout = At(1, 1, 3, 1);
  const TrainingResult three = RunWrong(directory_, config, 6, -1);
  EXPECT_TRUE(IsCorruption(three.statuses[1])) << three.statuses[1];
  EXPECT_TRUE(absl::IsUnavailable(three.statuses[0])) << three.statuses[0];
  config.layout = At(1, 1, 2, 1);
  const TrainingResult two = RunWrong(directory_, config, 6, -1);
  for (const absl::Status& status : two.statuses)
    EXPECT_TRUE(IsSuspectedCorruption(status)) << status;
}

// ---- no false alarms, and no other bits

TEST_F(IntegrityTest, NothingIsFoundWhereNothingIs) {
  RunConfig config = TinyConfig();
  config.phases[0].samples = 560;
  config.checkpoint.every_steps = 20;
  config.integrity.check = false;
  const TrainingResult plain = Train(config, directory_, directory_ + "/plain", "", -1);
  ASSERT_TRUE(plain.status.ok()) << plain.status;
  ASSERT_GE(plain.loss_bits.size(), 60U);
  config.integrity.check = true;
  config.integrity.audit_every = 3;
  config.integrity.spike = 1e-6;  // Every step is computed twice, too.
  for (const LayoutConfig& layout :
       {At(1, 1, 1, 1), At(1, 1, 3, 0), At(1, 1, 2, 2), At(2, 2, 2, 3), At(1, 2, 5, 1)}) {
    SCOPED_TRACE(
        fmt::format("t{}p{}d{}z{}", layout.tensor, layout.pipeline, layout.data, layout.zero));
    config.layout = layout;
    const TrainingResult result =
        Train(config, directory_, directory_ + fmt::format("/guarded{}", ++worlds_), "", -1);
    ASSERT_TRUE(result.status.ok()) << result.status;
    EXPECT_EQ(result.loss_bits, plain.loss_bits);
    EXPECT_EQ(result.certificates, plain.certificates);
  }
}

// ---- bad steps

// The curve with steps left out is one curve, whatever the layout and wherever it was resumed.
TEST_F(IntegrityTest, SkippedStepsAreTheSameEverywhere) {
  RunConfig config = TinyConfig();
  config.checkpoint.every_steps = 1;
  const TrainingResult& reference = Reference("fp32");
  // Two of the steps have a larger norm than this.
  std::vector<double> norms = reference.grad_norms;
  std::sort(norms.rbegin(), norms.rend());
  config.integrity.grad_norm_max = norms[2];
  config.integrity.bad_step = "skip";
  const TrainingResult whole = Train(config, directory_, directory_ + "/skip", "", -1);
  ASSERT_TRUE(whole.status.ok()) << whole.status;
  ASSERT_TRUE(whole.complete);
  EXPECT_NE(whole.certificate.Hex(), reference.certificate.Hex());
  int skipped = 0;
  for (const double norm : whole.grad_norms) skipped += norm > config.integrity.grad_norm_max;
  EXPECT_GT(skipped, 0);
  EXPECT_EQ(whole.loss_bits.size(), reference.loss_bits.size());
  config.layout = At(2, 1, 3, 3);
  const TrainingResult other = Train(config, directory_, directory_ + "/skip-other", "", -1);
  ASSERT_TRUE(other.status.ok()) << other.status;
  EXPECT_EQ(other.loss_bits, whole.loss_bits);
  EXPECT_EQ(other.certificates, whole.certificates);
  // From a checkpoint of every step.
  config.layout = At(1, 1, 2, 0);
  std::string checkpoint;
  std::vector<uint64_t> losses;
  for (int64_t until = 1; until <= static_cast<int64_t>(whole.loss_bits.size()); until += 2) {
    const TrainingResult part =
        Train(config, directory_, directory_ + "/skip-chain", checkpoint, until);
    ASSERT_TRUE(part.status.ok()) << part.status;
    losses.insert(losses.end(), part.loss_bits.begin(), part.loss_bits.end());
    checkpoint = part.checkpoint;
    EXPECT_EQ(part.certificate.Hex(), whole.certificates.at(until).Hex());
  }
  // "stop" ends there instead.
  config.integrity.bad_step = "stop";
  const TrainingResult stopped = Train(config, directory_, directory_ + "/skip-stop", "", -1);
  EXPECT_TRUE(absl::IsDataLoss(stopped.status) && !IsCorruption(stopped.status)) << stopped.status;
  EXPECT_NE(stopped.status.message().find("integrity.grad_norm_max"), std::string::npos);
}

// What a step stands out from goes with the state: no generation here is as long as the steps that
// a spike is measured by.
TEST_F(IntegrityTest, SpikesAreTheSameEverywhere) {
  RunConfig config = TinyConfig();
  config.phases.front().samples = 166;
  config.checkpoint.every_steps = 1;
  int runs = 0;
  const TrainingResult plain = Train(config, directory_, directory_ + "/plain", "", -1);
  ASSERT_TRUE(plain.status.ok()) << plain.status;
  config.integrity.bad_step = "skip";
  TrainingResult whole = plain;
  // Down to the first bound that some step of the run exceeds.
  for (config.integrity.spike_max = 2; whole.certificate == plain.certificate;) {
    config.integrity.spike_max *= 0.97;
    ASSERT_GT(config.integrity.spike_max, 0.5);
    whole = Train(config, directory_, directory_ + fmt::format("/spikes{}", runs++), "", -1);
    ASSERT_TRUE(whole.status.ok()) << whole.status;
  }
  EXPECT_TRUE(std::equal(plain.loss_bits.begin(), plain.loss_bits.begin() + kRecentStepsMin,
                         whole.loss_bits.begin()))
      << "too few before";
  config.layout = At(2, 2, 3, 2);
  const TrainingResult other =
      Train(config, directory_, directory_ + fmt::format("/spikes{}", runs++), "", -1);
  ASSERT_TRUE(other.status.ok()) << other.status;
  EXPECT_EQ(other.loss_bits, whole.loss_bits);
  EXPECT_EQ(other.certificates, whole.certificates);
  config.layout = At(1, 1, 2, 0);
  std::string checkpoint;
  const std::string chain = directory_ + fmt::format("/spikes{}", runs++);
  for (int64_t until = 2; until <= static_cast<int64_t>(whole.loss_bits.size()); until += 2) {
    const TrainingResult part = Train(config, directory_, chain, checkpoint, until);
    ASSERT_TRUE(part.status.ok()) << part.status;
    EXPECT_EQ(part.certificate, whole.certificates.at(until)) << until;
    checkpoint = part.checkpoint;
  }
  // Likewise from memory; each leaves one step after it is told to.
  RecoveryWorld world(World("spikes"), config);
  TrainingJob job = world.Job(1, config.layout, 1);
  std::vector<uint64_t> losses;
  while (losses.size() < whole.loss_bits.size()) {
    job.command = [begins = job.start.step](int64_t step) {
      return step == begins + 2 ? Command::kLeave : Command::kNone;
    };
    const TrainingResult part = RunJob(job);
    ASSERT_TRUE(part.status.ok()) << part.status;
    losses.insert(losses.end(), part.loss_bits.begin(), part.loss_bits.end());
    job = world.Resume(job.generation + 1, config.layout, 1, job, part.finished);
  }
  EXPECT_EQ(losses, whole.loss_bits);
}

}  // namespace
}  // namespace perdure
