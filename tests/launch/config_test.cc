#include "launch/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <regex>
#include <set>
#include <sstream>

#include "launch/config_fields.h"
#include "model/parameters.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string Recipe(const std::string& name) {
  return std::string(PERDURE_SOURCE_DIR) + "/launch/recipes/" + name + ".toml";
}

RunConfig Load(const std::string& recipe, const std::vector<std::string>& settings = {}) {
  const absl::StatusOr<RunConfig> config = LoadConfig(Recipe(recipe), settings);
  EXPECT_TRUE(config.ok()) << config.status();
  return config.ok() ? *config : RunConfig();
}

TEST(LoadConfig, Lucie) {
  const RunConfig config = Load("lucie/run");
  EXPECT_EQ(config.name, "lucie-7b");
  EXPECT_EQ(config.seed, 1234);
  EXPECT_EQ(CountParameters(config.model), 6'706'958'336);
  EXPECT_EQ(config.model.head_dim, 128);  // Resolved.
  EXPECT_EQ(config.tokenizer, "lucie/tokenizer.json");
  ASSERT_EQ(config.phases.size(), 3);
  const PhaseConfig& first = config.phases[0];
  EXPECT_EQ(first.name, "pretrain");
  EXPECT_EQ(first.samples, 762'144'586);
  EXPECT_EQ(first.context, 4096);
  EXPECT_EQ(first.rope_theta, 500'000);
  EXPECT_EQ(first.batch.initial, 256);
  EXPECT_EQ(first.batch.increment, 64);
  EXPECT_EQ(first.batch.ramp_samples, 10'000'000);
  EXPECT_EQ(first.batch.final, 1024);
  EXPECT_EQ(first.rate.peak, 3e-4);
  EXPECT_EQ(first.rate.final, 3e-5);
  EXPECT_EQ(first.rate.warmup_samples, 2'000'000);
  EXPECT_EQ(first.rate.decay, "cosine");
  ASSERT_EQ(first.mixture.size(), 7);
  EXPECT_EQ(first.mixture[2].path, "lucie/code");
  EXPECT_EQ(first.mixture[2].weight, 0.147);
  EXPECT_EQ(first.nodes, "");
  const PhaseConfig& second = config.phases[1];
  EXPECT_EQ(second.batch.final, 128);  // `batch = 128`, `rate = 2e-5`.
  EXPECT_EQ(second.batch.ramp_samples, 0);
  EXPECT_EQ(second.rate.peak, 2e-5);
  EXPECT_EQ(second.rate.decay, "constant");
  EXPECT_EQ(second.nodes, "32");
  EXPECT_EQ(config.numerics.dtype, "bf16");
  EXPECT_EQ(config.layout.data, 0);  // "auto".
  EXPECT_EQ(config.layout.zero, 1);
  EXPECT_EQ(config.job.time_limit, absl::Hours(20));
  EXPECT_EQ(config.job.nodes, "64-128");
  EXPECT_EQ(config.checkpoint.every, absl::Minutes(20));
  EXPECT_EQ(config.checkpoint.keep_every_steps, 25'000);
  EXPECT_EQ(config.numerics.backend, "cuda");
  EXPECT_EQ(config.slurm.site, "jean-zay-h100");
  EXPECT_EQ(config.monitoring.port, 9464);
}

// What was published of the run, and its end.
TEST(LoadConfig, LucieExportsWhatIsPublished) {
  const CheckpointConfig checkpoint = Load("lucie/run").checkpoint;
  EXPECT_EQ(checkpoint.export_format, "hf");
  std::set<int64_t> published = {5'000, 10'000, 15'000, 20'000, 753'851, 756'291};
  for (int64_t step = 25'000; step <= 750'000; step += 25'000) published.insert(step);
  for (const int64_t step : {250, 500, 750, 1'000, 1'220}) published.insert(753'851 + step);
  std::set<int64_t> exported;
  for (int64_t step = 0; step <= 756'291; ++step)
    if (checkpoint.exports(step)) exported.insert(step);
  EXPECT_EQ(exported, published);
}

TEST(LoadConfig, Nano) {
  const RunConfig config = Load("nano");
  EXPECT_EQ(config.phases.size(), 2);
  EXPECT_EQ(config.job.time_limit, absl::Minutes(20));
  EXPECT_EQ(config.checkpoint.every, absl::Seconds(60));
  EXPECT_EQ(config.numerics.leaf, 2);
  EXPECT_EQ(config.monitoring.port, 0);
}

TEST(LoadConfig, MissingFileSaysWhich) {
  const auto config = LoadConfig("/nonexistent/run.toml", {});
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(config.status()), HasSubstr("/nonexistent/run.toml"));
}

// ---- Printing -----------------------------------------------------------------------------------

TEST(PrintConfig, RecipesRoundTrip) {
  for (const char* recipe : {"lucie/run", "nano", "ai-sweden-8b"}) {
    const std::string printed = PrintConfig(Load(recipe));
    const auto again = ParseConfig(printed, "printed", {});
    ASSERT_TRUE(again.ok()) << again.status() << "\n" << printed;
    EXPECT_EQ(PrintConfig(*again), printed);
    EXPECT_TRUE(CheckFrozen(Load(recipe), *again, static_cast<int>(again->phases.size())).ok());
  }
}

// Every field, moved from its default to another valid value, comes back: none is forgotten.
TEST(PrintConfig, EveryFieldRoundTrips) {
  RunConfig c = Load("nano");
  c.name = "other.run";
  c.seed = (uint64_t{1} << 63) - 1;
  c.model = {.layers = 6,
             .hidden = 192,
             .heads = 16,
             .kv_heads = 8,
             .head_dim = 24,
             .ffn = 320,
             .vocab = 999,
             .norm_eps = 3e-6,
             .init_range = 0.0123,
             .scaled_init = false,

             .position = "none"};
  c.tokenizer = "a \"quoted\\ path\"\twith\nlines \u00e9\x7f";
  c.phases[0].rope_theta = 1e22;
  c.phases[0].rate = {1.0 / 3, 1e-300, 17, "linear"};
  c.phases[1].mixture = {{"x", 5e-324}, {"y", 1.7976931348623157e308}};
  c.phases[1].nodes = "3-9";
  c.optimizer = {.beta1 = 0.1, .beta2 = 0.2, .eps = 1e-12, .weight_decay = 0.3, .clip = 0};
  c.numerics = {.dtype = "bf16",
                .tensor_shards = 8,
                .micro_batch = 2,
                .leaf = 3,
                .atom_elements = 777,
                .threads = 5,
                .backend = "cpu",
                .isa = "avx2"};
  c.layout = {.tensor = 2,
              .pipeline = 3,
              .data = 11,
              .zero = 3,
              .virtual_stages = 2,
              .recompute = "full",
              .transport = "libfabric",
              .device_transport = "staged",
              .network = "tcp;ofi_rxm"};
  c.job = {.time_limit = absl::Hours(49) + absl::Seconds(61),
           .nodes = "2-5",
           .spares = 4,
           .ranks_per_node = 6,
           .health_check = false,
           .slow_window = absl::Seconds(7),
           .slow_percent = 222,
           .slow_retry = absl::Minutes(8),
           .leave_margin = absl::Seconds(21),
           .interface = "ib0",
           .hook = "/bin/mail",
           .no_progress_jobs = 5};
  c.slurm = {.site = "generic",
             .account = "abc@x",
             .partition = "p",
             .qos = "q",
             .constraint = "a&b c",
             .reservation = "r",
             .account_suffix = "@x",
             .options = {"--a=\"b\"", "-c\\"},
             .srun = {"--d"},
             .modules = {"m/1"},
             .environment = {"A=\u00e9 'b'"}};
  c.checkpoint = {.every = absl::Milliseconds(1500),
                  .every_steps = 8,
                  .keep_last = 9,
                  .keep_every_steps = 10,
                  .files = "12",
                  .asynchronous = false,
                  .write_mib_per_second = 13,
                  .export_steps = {14, 15},
                  .export_every_steps = 16,
                  .export_format = "dcp",
                  .refresh = "access"};
  c.snapshot = {.every = 17, .directory = "/run/user/7", .peers = false};
  c.integrity = {.check = false,
                 .audit_every = 9,
                 .bad_step = "rollback",
                 .rollback_steps = 18,
                 .rollbacks_max = 19,
                 .grad_norm_max = 0.75,
                 .spike_max = 20,
                 .spike = 3};
  c.monitoring = {.endpoint = false,
                  .port = 1234,
                  .interface = "eth0",
                  .token_file = "/t",
                  .certificate = "/c",
                  .textfile = "/x",
                  .peak_tflops = 989.5,
                  .tensorboard = false};
  const std::string printed = PrintConfig(c);
  const auto again = ParseConfig(printed, "printed", {});
  ASSERT_TRUE(again.ok()) << again.status() << "\n" << printed;
  EXPECT_EQ(PrintConfig(*again), printed);
  EXPECT_EQ(again->name, c.name);
  EXPECT_EQ(again->seed, c.seed);
  EXPECT_EQ(again->model, c.model);
  EXPECT_EQ(again->tokenizer, c.tokenizer);
  EXPECT_EQ(again->phases[0].rope_theta, 1e22);
  EXPECT_EQ(again->phases[0].rate.peak, 1.0 / 3);
  EXPECT_EQ(again->phases[0].rate.final, 1e-300);
  EXPECT_EQ(again->phases[1].mixture[0].weight, 5e-324);
  EXPECT_EQ(again->phases[1].mixture[1].weight, 1.7976931348623157e308);
  EXPECT_EQ(again->phases[1].nodes, "3-9");
  EXPECT_EQ(again->numerics.backend, "cpu");
  EXPECT_EQ(again->numerics.isa, "avx2");
  EXPECT_EQ(again->layout.data, 11);
  EXPECT_EQ(again->layout.network, "tcp;ofi_rxm");
  EXPECT_EQ(again->job.time_limit, c.job.time_limit);
  EXPECT_EQ(again->checkpoint.every, c.checkpoint.every);
  EXPECT_EQ(again->checkpoint.export_steps, c.checkpoint.export_steps);
  EXPECT_EQ(again->slurm.options, c.slurm.options);
  EXPECT_EQ(again->slurm.environment, c.slurm.environment);
  EXPECT_EQ(again->snapshot.directory, "/run/user/7");
  EXPECT_EQ(again->monitoring.tensorboard, false);
  // No value above is the default, but for the kinds that have only one.
  const RunConfig defaults;
  const std::set<std::string> single = {"model.kind", "model.activation", "model.tied_embeddings",
                                        "optimizer.kind"};
  for (const RunField& field : RunFields()) {
    if (single.contains(field.key) || field.key.starts_with("exec.")) continue;
    EXPECT_NE(field.print(*again), field.print(defaults)) << field.key;
  }
}

// And of a run whose trainer is not ours.
TEST(PrintConfig, ForeignRunsRoundTrip) {
  RunConfig c;
  c.name = "theirs";
  c.job.nodes = "2-5";
  c.slurm.partition = "p";
  c.exec = {.command = {"python3", "-c", "print(\"a'b\")\n", "", "--lr=1"},
            .directory = "/d d",
            .signal = "USR2",
            .leave = absl::Seconds(5),
            .stall = absl::Seconds(6)};
  const std::string printed = PrintConfig(c);
  EXPECT_THAT(printed, testing::Not(testing::HasSubstr("[model]")));
  const auto again = ParseConfig(printed, "printed", {});
  ASSERT_TRUE(again.ok()) << again.status() << "\n" << printed;
  EXPECT_EQ(PrintConfig(*again), printed);
  EXPECT_EQ(again->exec.command, c.exec.command);
  EXPECT_EQ(again->job.nodes, "2-5");
  for (const RunField& field : RunFields())
    if (field.key.starts_with("exec.")) {
      EXPECT_NE(field.print(*again), field.print(RunConfig())) << field.key;
    }
}

TEST(PrintConfig, DoublesAreExact) {
  RunConfig config = Load("nano");
  std::mt19937_64 bits(7);
  for (int i = 0; i < 300; ++i) {
    double value = 0;
    const uint64_t pattern = (bits() & ~(uint64_t{1} << 63)) % (uint64_t{0x7ff} << 52);
    std::memcpy(&value, &pattern, sizeof(value));
    if (value == 0) continue;
    config.phases[0].mixture[0].weight = value;
    const auto again = ParseConfig(PrintConfig(config), "printed", {});
    ASSERT_TRUE(again.ok()) << again.status();
    ASSERT_EQ(again->phases[0].mixture[0].weight, value);
  }
}

TEST(Durations, AllForms) {
  const std::pair<const char*, absl::Duration> forms[] = {
      {"\"20:00:00\"", absl::Hours(20)},
      {"\"100:00:30\"", absl::Hours(100) + absl::Seconds(30)},
      {"\"1-02:03:04\"", absl::Hours(26) + absl::Minutes(3) + absl::Seconds(4)},
      {"\"90s\"", absl::Seconds(90)},
      {"\"20min\"", absl::Minutes(20)},
      {"\"1h\"", absl::Hours(1)},
      {"\"1h30min\"", absl::Minutes(90)},
      {"\"2d12h\"", absl::Hours(60)},
      {"\"250ms\"", absl::Milliseconds(250)},
      {"90", absl::Seconds(90)},
  };
  for (const auto& [text, duration] : forms) {
    const RunConfig config = Load("nano", {fmt::format("job.time_limit={}", text)});
    EXPECT_EQ(config.job.time_limit, duration) << text;
  }
}

// ---- --set --------------------------------------------------------------------------------------

TEST(Settings, EveryKindOfValue) {
  const RunConfig config = Load(
      "nano", {"layout.tensor=4", "layout.data=3", "layout.recompute=full", "job.nodes=2-8",
               "job.time_limit=10:00:00", "monitoring.tensorboard=false", "optimizer.clip=0.5",
               "run.name=\"7\"", "layout.network=", "data.tokenizer= byte ", "numerics.leaf = 4"});
  EXPECT_EQ(config.layout.tensor, 4);
  EXPECT_EQ(config.layout.data, 3);
  EXPECT_EQ(config.layout.recompute, "full");
  EXPECT_EQ(config.job.nodes, "2-8");
  EXPECT_EQ(config.job.time_limit, absl::Hours(10));
  EXPECT_FALSE(config.monitoring.tensorboard);
  EXPECT_EQ(config.optimizer.clip, 0.5);
  EXPECT_EQ(config.name, "7");
  EXPECT_EQ(config.layout.network, "");
  EXPECT_EQ(config.tokenizer, "byte");
  EXPECT_EQ(config.numerics.leaf, 4);
}

TEST(Settings, LaterOnesWinAndTheFileIsOverruled) {
  const RunConfig config = Load("nano", {"layout.zero=2", "layout.zero=3", "job.nodes=2"});
  EXPECT_EQ(config.layout.zero, 3);
  EXPECT_EQ(config.job.nodes, "2");
}

TEST(Settings, AutoComesBack) {
  EXPECT_EQ(Load("nano", {"layout.data=2", "layout.data=auto"}).layout.data, 0);
}

TEST(Settings, KeysOfPhases) {
  const RunConfig config =
      Load("nano", {"phase.pretrain.samples=2000", "phase.pretrain.batch.final=64",
                    "phase.extension.rate.peak=1e-4", "phase.extension.batch=24",
                    "phase.pretrain.rate=1e-3", "phase.extension.nodes=2",
                    "phase.extension.mixture=[{path=\"a\", weight=1}]"});
  EXPECT_EQ(config.phases[0].samples, 2000);
  EXPECT_EQ(config.phases[0].batch.final, 64);
  EXPECT_EQ(config.phases[0].batch.initial, 16);
  EXPECT_EQ(config.phases[0].rate.peak, 1e-3);
  EXPECT_EQ(config.phases[0].rate.decay, "constant");  // The short form replaces the whole.
  EXPECT_EQ(config.phases[1].rate.peak, 1e-4);
  EXPECT_EQ(config.phases[1].batch.final, 24);
  EXPECT_EQ(config.phases[1].nodes, "2");
  ASSERT_EQ(config.phases[1].mixture.size(), 1);
  EXPECT_EQ(config.phases[1].mixture[0].path, "a");
}

TEST(Settings, MaySupplyWhatTheFileLacks) {
  std::string text = PrintConfig(Load("nano"));
  text = std::regex_replace(text, std::regex("layers = 4\n"), "");
  EXPECT_FALSE(ParseConfig(text, "run.toml", {}).ok());
  const auto config = ParseConfig(text, "run.toml", {"model.layers=8"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model.layers, 8);
}

// ---- Frozen runs --------------------------------------------------------------------------------

TEST(CheckFrozen, LayoutAndJobsMayChange) {
  const RunConfig now =
      Load("nano", {"layout.tensor=1", "layout.zero=3", "job.nodes=1", "checkpoint.keep_last=1",
                    "snapshot.every=0", "integrity.bad_step=skip", "monitoring.port=99",
                    "phase.pretrain.nodes=2", "layout.recompute=full"});
  EXPECT_TRUE(CheckFrozen(Load("nano"), now, 2).ok());
}

TEST(CheckFrozen, NamesTheKeyBothValuesAndTheWayOut) {
  const absl::Status status = CheckFrozen(Load("nano"), Load("nano", {"numerics.leaf=4"}), 1);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Message(status),
            "numerics.leaf = 4, but run lucie-nano began with 2, and it fixes the run's numbers: "
            "set it back, or begin a new run in another directory");
}

TEST(CheckFrozen, EverythingThatFixesTheBitsIsFrozen) {
  for (const char* setting : {"run.name=x",
                              "run.seed=1",
                              "data.tokenizer=byte",
                              "model.layers=8",
                              "model.ffn=768",
                              "model.norm_eps=1e-6",
                              "model.position=none",
                              "optimizer.beta2=0.99",
                              "optimizer.clip=0",
                              "numerics.dtype=bf16",
                              "numerics.micro_batch=1",
                              "numerics.threads=2",
                              "numerics.atom_elements=1024",
                              "numerics.backend=cuda",
                              "numerics.isa=avx2",
                              "integrity.grad_norm_max=3",
                              "integrity.rollback_steps=3",
                              "integrity.spike_max=4",
                              "phase.pretrain.samples=3000",
                              "phase.pretrain.rope_theta=1e4",
                              "phase.pretrain.batch.increment=32",
                              "phase.pretrain.rate.peak=1e-3",
                              "phase.pretrain.mixture=[{path=\"a\", weight=1}]"}) {
    const absl::Status status = CheckFrozen(Load("nano"), Load("nano", {setting}), 1);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << setting;
    const std::string key(setting, std::string(setting).find('='));
    EXPECT_THAT(Message(status), testing::StartsWith(key + " = "));
  }
}

TEST(CheckFrozen, SectionsAreFrozenAsDocumented) {
  for (const RunField& field : RunFields()) {
    const std::string section(KeyParent(field.key));
    const bool free =
        section == "layout" || section == "job" || section == "slurm" || section == "checkpoint" ||
        section == "snapshot" || section == "monitoring" || section == "exec" ||
        (section == "integrity" && field.key != "integrity.grad_norm_max" &&
         field.key != "integrity.spike_max" && field.key != "integrity.rollback_steps");
    EXPECT_EQ(field.frozen, !free) << field.key;
  }
}

TEST(CheckFrozen, PhasesToComeMayChange) {
  const RunConfig frozen = Load("nano");
  const RunConfig now = Load("nano", {"phase.extension.samples=480", "phase.extension.rate=1e-4"});
  EXPECT_TRUE(CheckFrozen(frozen, now, 0).ok());
  EXPECT_TRUE(CheckFrozen(frozen, now, 1).ok());
  const absl::Status status = CheckFrozen(frozen, now, 2);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(status), HasSubstr("phase.extension.samples = 480"));
  RunConfig shorter = frozen;
  shorter.phases.pop_back();
  EXPECT_TRUE(CheckFrozen(frozen, shorter, 1).ok());
  EXPECT_THAT(Message(CheckFrozen(frozen, shorter, 2)), HasSubstr("phase.extension is gone"));
  RunConfig longer = frozen;
  longer.phases.push_back(frozen.phases[1]);
  longer.phases[2].name = "annealing";
  EXPECT_TRUE(CheckFrozen(frozen, longer, 2).ok());
}

TEST(CheckFrozen, AutomaticBackendAgreesWithWhatWasFound) {
  RunConfig frozen = Load("nano");
  frozen.numerics.backend = "cpu";
  frozen.numerics.isa = "avx512_core_bf16";
  EXPECT_TRUE(CheckFrozen(frozen, Load("nano"), 1).ok());
  EXPECT_FALSE(CheckFrozen(frozen, Load("nano", {"numerics.isa=avx2"}), 1).ok());
  EXPECT_TRUE(CheckFrozen(frozen, Load("nano", {"numerics.backend=cpu"}), 1).ok());
  EXPECT_FALSE(CheckFrozen(frozen, Load("nano", {"numerics.backend=cuda"}), 1).ok());
}

// ---- Documentation ------------------------------------------------------------------------------

TEST(DescribeConfig, OneDocumentedLinePerKey) {
  std::istringstream lines(DescribeConfig());
  std::set<std::string> keys;
  const std::regex form(R"(([a-zA-Z0-9_.\[\]]+) = (\S.*?) +# [A-Z0-9a-z].+[^. ])");
  for (std::string line; std::getline(lines, line);) {
    std::smatch match;
    ASSERT_TRUE(std::regex_match(line, match, form)) << line;
    EXPECT_TRUE(keys.insert(match[1]).second) << line;
  }
  for (const char* key :
       {"run.name", "layout.tensor", "phase.NAME.batch", "phase.NAME.batch.final",
        "phase.NAME.mixture[].weight", "monitoring.port", "numerics.backend", "numerics.isa"})
    EXPECT_TRUE(keys.contains(key)) << key;
  EXPECT_EQ(keys.size(), RunFields().size() + PhaseFields().size() + SourceFields().size());
  EXPECT_THAT(DescribeConfig(), HasSubstr("layout.data = \"auto\" "));
  EXPECT_THAT(DescribeConfig(), HasSubstr("model.layers = (required) "));
}

TEST(NearestKey, FindsSlipsAndNothingElse) {
  const std::vector<std::string> known = {"tensor", "pipeline", "data", "zero"};
  EXPECT_EQ(NearestKey("tensr", known), "tensor");
  EXPECT_EQ(NearestKey("tenosr", known), "tensor");
  EXPECT_EQ(NearestKey("pipe_line", known), "pipeline");
  EXPECT_EQ(NearestKey("checkpointing", known), "");
  EXPECT_EQ(NearestKey(std::string(100'000, 'x'), known), "");
}

}  // namespace
}  // namespace perdure
