// Every way in which a configuration is refused: the place, the key, the value and a remedy.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "launch/config.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// Line numbers below count on this text.
constexpr const char* kGood = R"([run]
name = "good"
seed = 7
[model]
layers = 4
hidden = 64
heads = 8
kv_heads = 4
ffn = 96
vocab = 256
[[phase]]
name = "one"
samples = 1000
context = 64
batch = { initial = 8, increment = 8, ramp_samples = 100, final = 32 }
rate = { peak = 1e-3, final = 1e-4, warmup_samples = 100, decay = "cosine" }
mixture = [ { path = "data/en", weight = 1.0 } ]
[[phase]]
name = "two"
samples = 100
context = 128
batch = 8
rate = 1e-4
mixture = [ { path = "data/en", weight = 1 }, { path = "data/fr", weight = 0.5 } ]
[numerics]
tensor_shards = 4
micro_batch = 2
[layout]
tensor = 2
)";

std::string Replaced(const std::string& from, const std::string& to) {
  std::string text = kGood;
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

void ExpectRefused(const std::string& text, const std::vector<std::string>& settings,
                   const std::string& start, const std::string& remedy) {
  const auto config = ParseConfig(text, "run.toml", settings);
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << start;
  EXPECT_THAT(Message(config.status()), StartsWith(start));
  EXPECT_THAT(Message(config.status()), HasSubstr(remedy));
}

TEST(ConfigErrors, TheTextThatTheyAreMadeFromIsGood) {
  const auto config = ParseConfig(kGood, "run.toml", {});
  EXPECT_TRUE(config.ok()) << config.status();
}

struct BadText {
  const char* from;
  const char* to;
  const char* start;
  const char* remedy;
};

TEST(ConfigErrors, InTheFile) {
  const BadText cases[] = {
      // Not TOML.
      {"seed = 7", "seed = ", "run.toml:3:8: not TOML: ", ""},
      {"seed = 7", "name = \"b\"", "run.toml:3:", "not TOML"},
      // Unknown keys and sections.
      {"layers = 4", "layer = 4", "run.toml:5:9: unknown key model.layer;", "model.layers?"},
      {"[layout]", "[layuot]", "run.toml:28:1: unknown key layuot;", "did you mean layout?"},
      {"seed = 7", "context = 7", "run.toml:3:11: unknown key run.context;",
       "did you mean phase.NAME.context?"},
      {"seed = 7", "clip = 7", "run.toml:3:8: unknown key run.clip;", "optimizer.clip?"},
      {"seed = 7", "xyzzyxyzzy = 7", "run.toml:3:14: unknown key run.xyzzyxyzzy;",
       "known here: name, seed"},
      {"[run]", "[[phases]]\n[run]", "run.toml:1:1: unknown key phases;", "did you mean phase?"},
      {"context = 64", "contxt = 64", "run.toml:14:10: unknown key phase.one.contxt;",
       "did you mean phase.one.context?"},
      {"decay =", "decy =", "run.toml:16:", "did you mean phase.one.rate.decay?"},
      {"seed = 7", "seed.x = 7", "run.toml:3:", "run.seed = "},
      // Wrong types.
      {"layers = 4", "layers = \"4\"", "run.toml:5:10: model.layers = \"4\" must be an integer",
       ""},
      {"layers = 4", "layers = 4.0", "run.toml:5:10: model.layers = 4.0", "must be an integer: 4"},
      {"layers = 4", "layers = true", "run.toml:5:10: model.layers = true must be an integer", ""},
      {"layers = 4", "layers = [4]", "run.toml:5:10: model.layers = [ 4 ] must be an integer", ""},
      {"samples = 1000", "samples = 1e3", "run.toml:13:11: phase.one.samples = 1000.0",
       "must be an integer: 1000"},
      {"seed = 7", "seed = -7", "run.toml:3:8: run.seed = -7", "0 or more"},
      {"\"good\"", "3", "run.toml:2:8: run.name = 3", "put it in quotes, \"3\""},
      {"\"good\"", "[3]", "run.toml:2:8: run.name = [ 3 ]", "must be a string in quotes"},
      {"seed = 7", "[optimizer]\nclip = \"1\"", "run.toml:4:8: optimizer.clip = \"1\"",
       "must be a number"},
      {"seed = 7", "[optimizer]\nclip = nan", "run.toml:4:8: optimizer.clip = nan",
       "must be finite"},
      {"seed = 7", "[optimizer]\nclip = inf", "run.toml:4:8: optimizer.clip = inf",
       "must be finite"},
      {"seed = 7", "[monitoring]\ntensorboard = 1", "run.toml:4:15: monitoring.tensorboard = 1",
       "must be true or false"},
      {"tensor = 2", "data = 0", "run.toml:29:8: layout.data = 0", "\"auto\""},
      {"tensor = 2", "data = \"all\"", "run.toml:29:8: layout.data = \"all\"", "\"auto\""},
      {"seed = 7", "[job]\nnodes = 1.5", "run.toml:4:9: job.nodes = 1.5", "4 or \"2-8\""},
      {"seed = 7", "[job]\nnodes = \"8-2\"", "run.toml:4:9: job.nodes = \"8-2\"", "4 or \"2-8\""},
      {"seed = 7", "[job]\nnodes = \"\"", "run.toml:4:9: job.nodes = \"\"", "4 or \"2-8\""},
      {"seed = 7", "[job]\nnodes = 0", "run.toml:4:9: job.nodes = \"0\"", "4 or \"2-8\""},
      {"seed = 7", "[checkpoint]\nevery = \"20m\"", "run.toml:4:9: checkpoint.every = \"20m\"",
       "\"20min\""},
      {"seed = 7", "[checkpoint]\nevery = 20:00:00", "run.toml:4:9: checkpoint.every = 20:00:00",
       "\"20:00:00\""},
      {"seed = 7", "[checkpoint]\nevery = \"30min1h\"", "run.toml:4:9:", "\"1h30min\""},
      {"seed = 7", "[checkpoint]\nevery = \"1:2:3\"", "run.toml:4:9:", "\"20:00:00\""},
      {"seed = 7", "[checkpoint]\nevery = \"1:00:60\"", "run.toml:4:9:", "\"20:00:00\""},
      {"seed = 7", "[checkpoint]\nevery = \"\"", "run.toml:4:9:", "\"20:00:00\""},
      {"seed = 7", "[checkpoint]\nevery = -5", "run.toml:4:9: checkpoint.every = -5", "\"90s\""},
      {"seed = 7", "[checkpoint]\nevery = 1.5", "run.toml:4:9: checkpoint.every = 1.5", "\"90s\""},
      {"seed = 7", "[checkpoint]\nevery = \"99999999999h\"", "run.toml:4:9:", "100 years"},
      {"seed = 7", "[checkpoint]\nevery = \"0s\"", "run.toml:4:9: checkpoint.every = \"0s\"",
       "\"20min\""},
      {"batch = 8", "batch = \"8\"", "run.toml:22:9: phase.two.batch = \"8\" must be an integer",
       ""},
      {"rate = 1e-4", "rate = true", "run.toml:23:8: phase.two.rate = true must be a number", ""},
      // Shapes of sections and phases.
      {"[run]\nname = \"good\"\nseed = 7", "run = 3", "run.toml:1:7: run = 3",
       "must be a section: [run]"},
      {"[[phase]]\nname = \"two\"", "[two]\n", "run.toml:18:1: unknown key two;", "known here: "},
      {"mixture = [ { path = \"data/en\", weight = 1.0 } ]", "mixture = \"data/en\"",
       "run.toml:17:11: phase.one.mixture = \"data/en\"", "must be a list of sources: [ { path"},
      {"{ path = \"data/en\", weight = 1.0 }", "\"data/en\"",
       "run.toml:17:11: phase.one.mixture = ", "must have tables as entries: { path"},
      {", weight = 1.0", "", "run.toml:17:11: phase.one.mixture = ", "entry without weight"},
      {"weight = 1.0", "weight = \"1\"",
       "run.toml:17:11: phase.one.mixture = ", "weight = \"1\", which must be a number"},
      {"weight = 1.0", "weight = 1.0, wieght = 1",
       "run.toml:17:11: phase.one.mixture = ", "unknown key wieght; did you mean weight?"},
      {"weight = 1.0", "weight = 1.0, colour = 1",
       "run.toml:17:11: phase.one.mixture = ", "the keys are path and weight"},
      // Missing.
      {"layers = 4\n", "", "run.toml: model.layers is missing: ", "add it to [model]"},
      {"name = \"good\"\n", "", "run.toml: run.name is missing: ", "add it to [run]"},
      {"batch = 8\n", "", "run.toml: phase.two.batch.final is missing", "--set phase.two.batch"},
      {"rate = 1e-4\n", "", "run.toml: phase.two.rate.peak is missing", "add it to its [[phase]]"},
      {", final = 32", "", "run.toml: phase.one.batch.final is missing", ""},
      {"name = \"two\"\n", "", "run.toml: phase.#2.name is missing", ""},
      {"context = 128\n", "", "run.toml: phase.two.context is missing", ""},
      {"mixture = [ { path = \"data/en\", weight = 1.0 } ]\n", "",
       "run.toml: phase.one.mixture is missing", ""},
  };
  for (const BadText& bad : cases)
    ExpectRefused(Replaced(bad.from, bad.to), {}, bad.start, bad.remedy);
}

TEST(ConfigErrors, PhaseAsASingleTable) {
  ExpectRefused("[phase]\nname = \"x\"\n", {}, "run.toml:1:1: phase must be a list of tables",
                "[[phase]]");
  ExpectRefused("phase = [1]\n", {}, "run.toml:1:9: phase must be a list of tables", "[[phase]]");
}

TEST(ConfigErrors, NoPhases) {
  const std::string text = kGood;
  const std::string none =
      text.substr(0, text.find("[[phase]]")) + text.substr(text.find("[numerics]"));
  ExpectRefused(none, {}, "run.toml: phase is missing", "[[phase]] with name");
}

struct BadSetting {
  const char* setting;
  const char* start;  // Behind "--set SETTING: ".
  const char* remedy;
};

TEST(ConfigErrors, Settings) {
  const BadSetting cases[] = {
      {"layout.tensor", "write KEY=VALUE", "layout.tensor=2"},
      {"=3", "write KEY=VALUE", "layout.tensor=2"},
      {"layout.tensr=2", "unknown key layout.tensr", "did you mean layout.tensor?"},
      {"tensor=2", "unknown key tensor", "did you mean layout.tensor?"},
      {"layout=2", "layout = 2", "must be a section"},
      {"run.name=[", "[ is not a TOML value", ""},
      {"run.name=\"x", "\"x is not a TOML value", ""},
      {"layout.tensor=two", "layout.tensor = \"two\"", "must be an integer"},
      {"layout.tensor=1\nseed=2", "layout.tensor = \"1\\u000Aseed=2\"", "must be an integer"},
      {"phase=3", "name a key of a phase", "phase.NAME.samples=1000"},
      {"phase.one=3", "name a key of a phase", "phase.NAME.samples=1000"},
      {"phase.one.=3", "name a key of a phase", "phase.NAME.samples=1000"},
      {"phase.won.samples=3", "no phase is named won", "did you mean phase.one.samples?"},
      {"phase.annealing.samples=3", "no phase is named annealing", "there are: one, two"},
      {"phase.one.name=uno", "a phase is named in the file only", "run.toml"},
      {"phase.one.sampls=3", "unknown key phase.one.sampls", "did you mean phase.one.samples?"},
      {"phase.one.batch.last=3", "unknown key phase.one.batch.last",
       "known here: initial, increment, ramp_samples, final"},
  };
  for (const BadSetting& bad : cases) {
    const std::string prefix = fmt::format("--set {}: ", bad.setting);
    std::string shown = prefix;
    ExpectRefused(kGood, {bad.setting}, shown + bad.start, bad.remedy);
  }
}

// What ValidateConfig refuses: through --set, so that the place is the setting.
TEST(ConfigErrors, Ranges) {
  const BadSetting cases[] = {
      {"run.name=a b", "run.name = \"a b\"", "letters, digits"},
      {"run.name=../x", "run.name = \"../x\"", "for example"},
      {"data.tokenizer=", "data.tokenizer = \"\" must not be empty", "the default is \"byte\""},
      {"model.kv_heads=3", "model.kv_heads = 3", "2 would do"},
      {"model.heads=12", "model.hidden = 64", "60 would do"},
      {"model.position=alibi", "model.position = \"alibi\"", "\"rope\""},
      {"model.activation=relu2", "model.activation = \"relu2\"", "\"swiglu\""},
      {"model.tied_embeddings=true", "model.tied_embeddings = true is not implemented", "false"},
      {"model.ffn=98", "model.ffn = 98", "100 would do, or tensor_shards = 2"},
      {"optimizer.kind=lion", "optimizer.kind = \"lion\"", "\"adamw\""},
      {"optimizer.beta1=1", "optimizer.beta1 = 1.0 must be at least 0 and below 1", "0.9"},
      {"optimizer.beta2=-0.1", "optimizer.beta2 = -0.1", "the default is 0.95"},
      {"optimizer.eps=0", "optimizer.eps = 0.0 must be above 0", "1e-08"},
      {"optimizer.weight_decay=-1", "optimizer.weight_decay = -1.0", "0.1"},
      {"optimizer.clip=-1", "optimizer.clip = -1.0 must be at least 0 and finite", "1.0"},
      {"numerics.dtype=fp16", "numerics.dtype = \"fp16\" must be one of \"fp32\", \"bf16\"", ""},
      {"numerics.tensor_shards=3", "numerics.tensor_shards = 3 must be a power of two", "2 would"},
      {"numerics.tensor_shards=128", "numerics.tensor_shards = 128", "between 1 and 64"},
      {"numerics.tensor_shards=0", "numerics.tensor_shards = 0", "between 1 and 64"},
      {"numerics.micro_batch=0", "numerics.micro_batch = 0", "the default is 1"},
      {"numerics.leaf=0", "numerics.leaf = 0", "the default is 1"},
      {"numerics.atom_elements=0", "numerics.atom_elements = 0", "the default is 262144"},
      {"numerics.threads=0", "numerics.threads = 0", "the default is 1"},
      {"numerics.backend=gpu", "numerics.backend = \"gpu\"", "\"auto\", \"cpu\", \"cuda\""},
      {"numerics.isa=", "numerics.isa = \"\"", "\"auto\""},
      {"layout.tensor=3", "layout.tensor = 3 must be a power of two", "2 would do"},
      {"layout.tensor=8", "layout.tensor = 8", "tensor_shards = 4; 4 would do"},
      {"layout.pipeline=5", "layout.pipeline = 5", "pipeline = 4 would do"},
      {"layout.pipeline=0", "layout.pipeline = 0", "the default is 1"},
      {"layout.virtual_stages=2", "layout.virtual_stages = 2 needs", "virtual_stages = 1"},
      {"layout.virtual_stages=5", "layout.pipeline = 1 times virtual_stages = 5",
       "with virtual_stages = 1"},
      {"layout.zero=4", "layout.zero = 4 must be between 0 and 3", "the default is 1"},
      {"layout.recompute=some", "layout.recompute = \"some\"", "\"none\", \"full\""},
      {"layout.transport=mpi", "layout.transport = \"mpi\"", "\"ucx\", \"libfabric\""},
      {"job.spares=-1", "job.spares = -1", "the default is 0"},
      {"job.ranks_per_node=0", "job.ranks_per_node = 0", "the default is 1"},
      {"job.time_limit=0s", "job.time_limit = \"0s\"", "longer than 0"},
      {"job.slow_window=25h", "job.slow_window = \"1d1h\"", "between 0s and 24h"},
      {"job.slow_percent=100", "job.slow_percent = 100", "the default is 150"},
      {"job.slow_retry=0s", "job.slow_retry = \"0s\"", "longer than 0"},
      {"checkpoint.every_steps=-1", "checkpoint.every_steps = -1", "the default is 0"},
      {"checkpoint.keep_last=0", "checkpoint.keep_last = 0", "the default is 3"},
      {"checkpoint.keep_every_steps=-1", "checkpoint.keep_every_steps = -1", "the default is 0"},
      {"snapshot.every=-1", "snapshot.every = -1", "the default is 1"},
      {"snapshot.directory=shm", "snapshot.directory = \"shm\" must be a path from the root",
       "\"/dev/shm\""},
      {"snapshot.peers=2", "snapshot.peers", ""},
      {"integrity.bad_step=ignore", "integrity.bad_step = \"ignore\"",
       "\"stop\", \"skip\", \"rollback\""},
      {"integrity.rollback_steps=0", "integrity.rollback_steps = 0", "the default is 10"},
      {"integrity.rollbacks_max=0", "integrity.rollbacks_max = 0", "the default is 3"},
      {"integrity.audit_every=-1", "integrity.audit_every = -1", "the default is 0"},
      {"integrity.grad_norm_max=-1", "integrity.grad_norm_max = -1.0 must be at least 0", "0.0"},
      {"integrity.spike_max=-1", "integrity.spike_max = -1.0 must be at least 0", "0.0"},
      {"integrity.spike=-1", "integrity.spike = -1.0 must be at least 0", "10.0"},
      {"monitoring.port=65536", "monitoring.port = 65536", "65535"},
      {"phase.one.samples=0", "phase.one.samples = 0", "between 1 and"},
      {"phase.one.context=0", "phase.one.context = 0", "between 1 and"},
      {"phase.one.context=63", "phase.one.context = 63", "a context of 64 would do"},
      {"phase.one.rope_theta=0", "phase.one.rope_theta = 0.0 must be above 0", "10000.0"},
      {"phase.one.nodes=x", "phase.one.nodes = \"x\"", "4 or \"2-8\""},
      {"phase.two.batch=0", "phase.two.batch.final = 0", "between 1"},
      {"phase.two.batch=7", "phase.two.batch.final = 7 is not a multiple of numerics.micro_batch",
       "8 would do"},
      {"phase.two.batch={initial=4, final=8}", "phase.two.batch.initial = 4 is not final",
       "set batch.ramp_samples"},
      {"phase.two.samples=7", "phase.two.samples = 7 do not fill one step of 8", "8 would do"},
      {"phase.one.batch.initial=0", "phase.one.batch.initial = 0", "2 would do"},
      {"phase.one.batch.initial=32", "phase.one.batch.initial = 32 must be", "batch = 32"},
      {"phase.one.batch.initial=-8", "phase.one.batch.initial = -8", "between 0"},
      {"phase.one.batch.increment=0", "phase.one.batch.increment = 0 must divide", "24 would do"},
      {"phase.one.batch.increment=7", "phase.one.batch.increment = 7 must divide", "24 would do"},
      {"phase.one.batch={initial=7, increment=5, ramp_samples=9, final=32}",
       "phase.one.batch.initial = 7 is not a multiple", "8 would do"},
      {"phase.one.batch={initial=8, increment=3, ramp_samples=9, final=32}",
       "phase.one.batch.increment = 3 is not a multiple", "4 would do"},
      {"phase.one.batch.ramp_samples=1001", "phase.one.batch.ramp_samples = 1001 exceed",
       "1000 would do"},
      {"phase.one.rate.peak=0", "phase.one.rate.peak = 0.0 must be above 0", "for example 3e-4"},
      {"phase.one.rate.peak=-1e-3", "phase.one.rate.peak = -0.001 must be above 0", ""},
      {"phase.one.rate.final=-1e-3", "phase.one.rate.final = -0.001", "the default is 0.0"},
      {"phase.one.rate.final=2e-3", "phase.one.rate.final = 0.002 is above peak",
       "0.0001 would do"},
      {"phase.one.rate.decay=sqrt", "phase.one.rate.decay = \"sqrt\"", "\"linear\""},
      {"phase.two.rate.final=1e-5", "phase.two.rate.final = 1e-05 is never reached",
       "leave it out"},
      {"phase.one.rate.warmup_samples=1000", "phase.one.rate.warmup_samples = 1000 must be fewer",
       "10 would do"},
      {"phase.one.mixture=[]", "phase.one.mixture is empty", "{ path = \"data/en\""},
      {"phase.two.mixture=[{path='a', weight=0}]", "phase.two.mixture entry 1: weight = 0.0",
       "above 0"},
      {"phase.two.mixture=[{path='a', weight=1}, {path='', weight=1}]",
       "phase.two.mixture entry 2: path = \"\"", "\"data/en\""},
      {"phase.two.mixture=[{path='a', weight=1}, {path='a', weight=2}]",
       "phase.two.mixture names \"a\" twice", "keep one entry"},
  };
  for (const BadSetting& bad : cases) {
    const auto config = ParseConfig(kGood, "run.toml", {bad.setting});
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << bad.setting;
    EXPECT_THAT(Message(config.status()), HasSubstr(std::string(": ") + bad.start));
    EXPECT_THAT(Message(config.status()), HasSubstr(bad.remedy)) << bad.setting;
  }
}

TEST(ConfigErrors, RangesNameThePlaceInTheFile) {
  ExpectRefused(Replaced("layers = 4", "layers = -4"), {}, "run.toml:5:10: model.layers = -4", "");
  ExpectRefused(Replaced("batch = 8", "batch = 9"), {}, "run.toml:22:9: phase.two.batch.final = 9",
                "10 would do");
  ExpectRefused(Replaced("increment = 8", "increment = 7"), {},
                "run.toml:15:36: phase.one.batch.increment = 7", "24 would do");
  ExpectRefused(Replaced("tensor = 2", "tensor = 3"), {}, "run.toml:29:10: layout.tensor = 3", "");
  // The last of the two keys that disagree is where it was set.
  ExpectRefused(kGood, {"phase.two.samples=7"}, "--set phase.two.samples=7: phase.two.samples", "");
}

TEST(ConfigErrors, TwoPhasesOfOneName) {
  ExpectRefused(Replaced("name = \"two\"", "name = \"one\""), {},
                "run.toml:19:8: phase.one.name = \"one\" is the name of two phases",
                "\"one-2\" would do");
}

TEST(ConfigErrors, PhaseNamesAreKeys) {
  ExpectRefused(Replaced("name = \"two\"", "name = \"t.wo\""), {},
                "run.toml:19:8: phase.t.wo.name = \"t.wo\" must be a name", "\"pretrain-1\"");
  ExpectRefused(Replaced("name = \"two\"", "name = \"\""), {}, "run.toml", "\"pretrain-1\"");
}

TEST(ConfigErrors, TooManyTokens) {
  ExpectRefused(kGood, {"phase.one.samples=1000000000000000", "phase.one.context=1073741824"},
                "--set phase.one.samples=1000000000000000: phase.one.samples = 1000000000000000",
                "at most 4294967296 would do");
}

TEST(ConfigErrors, TooManyAtoms) {
  ExpectRefused(kGood, {"model.vocab=1048576", "numerics.atom_elements=1"},
                "--set numerics.atom_elements=1: numerics.atom_elements = 1 cuts", "would do");
}

TEST(ConfigErrors, CodeBuiltConfigurations) {
  RunConfig config = *ParseConfig(kGood, "run.toml", {});
  config.seed = uint64_t{1} << 63;
  EXPECT_THAT(Message(ValidateConfig(config)), StartsWith("run.seed = 9223372036854775808"));
  config.seed = 0;
  EXPECT_TRUE(ValidateConfig(config).ok());
  config.optimizer.clip = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(Message(ValidateConfig(config)), StartsWith("optimizer.clip = nan"));
  config.optimizer.clip = 1;
  config.job.time_limit = absl::InfiniteDuration();
  EXPECT_THAT(Message(ValidateConfig(config)), StartsWith("job.time_limit = "));
  config.job.time_limit = absl::Hours(1);
  config.layout.data = -1;
  EXPECT_THAT(Message(ValidateConfig(config)), StartsWith("layout.data = -1"));
}

TEST(ConfigErrors, GarbageNeverCrashes) {
  const std::string text = kGood;
  for (size_t length = 0; length < text.size(); ++length)
    (void)ParseConfig(text.substr(0, length), "run.toml", {});
  for (size_t at = 0; at < text.size(); at += 3) {
    std::string broken = text;
    broken[at] = static_cast<char>(broken[at] ^ 0x11);
    (void)ParseConfig(broken, "run.toml", {});
  }
}

}  // namespace
}  // namespace perdure
