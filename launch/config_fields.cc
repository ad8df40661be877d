#include "launch/config_fields.h"

#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/ascii.h"
#include "launch/config_values.h"
#include "runtime/base/status.h"
#include "runtime/train/plan.h"

namespace perdure {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kMostCount = int64_t{1} << 50;  // Exact in a double; far beyond any run.

// ---- What values a field may have ---------------------------------------------------------------

struct Integers {
  int64_t least = 0;
  int64_t most = kMostCount;

  std::string Check(int64_t value) const {
    if (least <= value && value <= most) return "";
    return fmt::format("must be between {} and {}", least, most);
  }
};

struct Numbers {
  double least = 0;
  bool or_least = true;  // Whether `least` itself is allowed.
  double below = kInfinity;
  const char* example = nullptr;  // Where there is no default to name.

  std::string Check(double value) const {
    if (std::isfinite(value) && value < below && (value > least || (or_least && value == least)))
      return "";
    return fmt::format("must be {} {}{}{}", or_least ? "at least" : "above", least,
                       below == kInfinity ? " and finite" : fmt::format(" and below {}", below),
                       example == nullptr ? "" : fmt::format(", for example {}", example));
  }
};

// Letters, digits and . _ - : names become file names, metric labels and keys of --set.
struct Name {
  bool dots = false;

  std::string Check(const std::string& value) const {
    bool ok = !value.empty() && value.size() <= 64 && value.front() != '.' && value.front() != '-';
    for (const char c : value)
      ok = ok && (absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '-' ||
                  (dots && c == '.'));
    return ok ? ""
              : fmt::format(
                    "must be a name of at most 64 letters, digits, _ and -{}, for example "
                    "\"pretrain-1\"",
                    dots ? " and dots" : "");
  }
};

struct Choices {
  std::vector<std::string> values;

  std::string Check(const std::string& value) const {
    std::string list;
    for (const std::string& choice : values) {
      if (choice == value) return "";
      list += fmt::format("{}\"{}\"", list.empty() ? "" : ", ", choice);
    }
    return "must be one of " + list;
  }
};

struct NotEmpty {
  std::string Check(const std::string& value) const {
    return value.empty() ? "must not be empty" : "";
  }
};

struct AbsolutePath {
  std::string Check(const std::string& value) const {
    return value.starts_with('/') ? "" : "must be a path from the root, for example \"/dev/shm\"";
  }
};

struct PathOrNone {
  std::string Check(const std::string& value) const {
    return value.empty() ? "" : AbsolutePath{}.Check(value);
  }
};

struct WindowsOrNone {
  std::string Check(absl::Duration value) const {
    return value >= absl::ZeroDuration() && value <= absl::Hours(24) ? ""
                                                                     : "must be between 0s and 24h";
  }
};

struct Durations {
  std::string Check(absl::Duration value) const {
    return value > absl::ZeroDuration() && value < absl::InfiniteDuration()
               ? ""
               : "must be longer than 0, for example \"20min\"";
  }
};

struct Seeds {
  std::string Check(uint64_t value) const {
    return value <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())
               ? ""
               : "must be below 2^63, where TOML's integers end; for example 1234";
  }
};

struct Steps {
  std::string Check(const std::vector<int64_t>& steps) const {
    const bool fine =
        std::all_of(steps.begin(), steps.end(), [](int64_t step) { return step > 0; });
    return fine ? "" : "must have steps from 1 only, for example [5000, 10000]";
  }
};

bool IsLine(std::string_view text) {
  return std::none_of(text.begin(), text.end(),
                      [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; });
}

struct OneLine {
  std::string Check(const std::string& value) const {
    return IsLine(value) ? "" : "must be one line without control characters";
  }
};

struct OneWord {
  std::string Check(const std::string& value) const {
    return IsLine(value) && value.find(' ') == std::string::npos ? "" : "must be one word";
  }
};

struct Words {
  std::string Check(const std::vector<std::string>& values) const {
    const bool fine = std::all_of(values.begin(), values.end(), [](const std::string& value) {
      return !value.empty() && OneWord{}.Check(value).empty();
    });
    return fine ? "" : "must be words, none of them empty";
  }
};

struct Command {
  std::string Check(const std::vector<std::string>& values) const {
    if (values.empty()) return "";
    // What env would take for a variable, or for an option of its own.
    if (values[0].empty() || values[0].front() == '-' || values[0].find('=') != std::string::npos)
      return "must begin with a program: [\"python3\", \"train.py\"]";
    const bool fine = std::all_of(values.begin(), values.end(), [](const std::string& value) {
      return value.find('\0') == std::string::npos;
    });
    return fine ? "" : "has a zero byte, which no program's argument can have";
  }
};

struct Options {
  std::string Check(const std::vector<std::string>& values) const {
    const bool fine = std::all_of(values.begin(), values.end(), [](const std::string& value) {
      return value.size() > 1 && value.front() == '-' && IsLine(value);
    });
    return fine ? "" : "must be options, each with its value in one: \"--gres=gpu:4\"";
  }
};

struct Variables {
  static bool IsName(std::string_view name) {
    return !name.empty() && std::isdigit(static_cast<unsigned char>(name.front())) == 0 &&
           std::all_of(name.begin(), name.end(),
                       [](unsigned char c) { return std::isalnum(c) != 0 || c == '_'; });
  }
  std::string Check(const std::vector<std::string>& values) const {
    const bool fine = std::all_of(values.begin(), values.end(), [](const std::string& value) {
      const size_t equals = value.find('=');
      return equals != std::string::npos && IsName(value.substr(0, equals)) && IsLine(value);
    });
    return fine ? "" : "must be \"NAME=value\", each in one line";
  }
};

struct Anything {
  template <typename T>
  std::string Check(const T&) const {
    return "";
  }
};

// ---- Fields -------------------------------------------------------------------------------------

template <typename Owner, typename T, typename Limits>
Field<Owner> Make(const char* key, T Owner::*member, Limits limits, const char* doc,
                  Presence presence = Presence::kOptional) {
  Field<Owner> field;
  field.key = key;
  field.doc = doc;
  field.presence = presence;
  field.read = [member](const toml::node& node, Owner& owner) {
    return ReadValue(node, owner.*member);
  };
  field.print = [member](const Owner& owner) { return PrintValue(owner.*member); };
  field.check = [member, limits](const Owner& owner) { return limits.Check(owner.*member); };
  return field;
}

template <typename Owner, typename T, typename Limits>
Field<Owner> Required(const char* key, T Owner::*member, Limits limits, const char* doc) {
  return Make(key, member, limits, doc, Presence::kRequired);
}

template <typename Owner, typename Part>
Field<Owner> Lift(const std::string& prefix, Part Owner::*part, const Field<Part>& inner) {
  Field<Owner> field;
  field.key = inner.key.empty() ? prefix : prefix + "." + inner.key;
  field.doc = inner.doc;
  field.presence = inner.presence;
  field.frozen = inner.frozen;
  field.auto_matches = inner.auto_matches;
  field.read = [part, read = inner.read](const toml::node& node, Owner& owner) {
    return read(node, owner.*part);
  };
  field.print = [part, print = inner.print](const Owner& owner) { return print(owner.*part); };
  field.check = [part, check = inner.check](const Owner& owner) { return check(owner.*part); };
  return field;
}

template <typename Owner, typename Part>
void Append(std::vector<Field<Owner>>& fields, const std::string& prefix, Part Owner::*part,
            const std::vector<Field<Part>>& inner) {
  for (const Field<Part>& field : inner) fields.push_back(Lift(prefix, part, field));
}

template <typename Owner>
std::vector<Field<Owner>> Frozen(std::vector<Field<Owner>> fields) {
  for (Field<Owner>& field : fields) field.frozen = true;
  return fields;
}

// A number of nodes, or text that ParseNodeRange takes.
template <typename Owner>
Field<Owner> Nodes(std::string Owner::*member, bool may_be_empty, const char* doc) {
  Field<Owner> field = Make("nodes", member, Anything(), doc);
  field.read = [member](const toml::node& node, Owner& owner) -> std::string {
    if (const auto count = node.value_exact<int64_t>())
      owner.*member = fmt::format("{}", *count);
    else if (const auto text = node.value_exact<std::string>())
      owner.*member = *text;
    else
      return "must be a number of nodes or \"MIN-MAX\", for example 4 or \"2-8\"";
    return "";
  };
  field.check = [member, may_be_empty](const Owner& owner) -> std::string {
    const std::string& text = owner.*member;
    if ((text.empty() && may_be_empty) || ParseNodeRange(text).ok()) return "";
    return "must be a number of nodes or \"MIN-MAX\", for example 4 or \"2-8\"";
  };
  return field;
}

// "node", "rank" or a number of ranks.
Field<CheckpointConfig> Files(std::string CheckpointConfig::*member) {
  constexpr const char* kWrong = "must be \"node\", \"rank\" or a number of ranks, for example 8";
  Field<CheckpointConfig> field =
      Make("files", member, Anything(), "Ranks that share a file: \"node\", \"rank\" or a number");
  field.read = [member](const toml::node& node, CheckpointConfig& owner) -> std::string {
    if (const auto count = node.value_exact<int64_t>())
      owner.*member = fmt::format("{}", *count);
    else if (const auto text = node.value_exact<std::string>())
      owner.*member = *text;
    else
      return kWrong;
    return "";
  };
  field.check = [](const CheckpointConfig& owner) -> std::string {
    return RanksPerFile(owner, 1) > 0 ? "" : kWrong;
  };
  return field;
}

// `batch = 128` and `rate = 2e-5`: the whole struct from its last value.
template <typename Owner, typename T>
Field<Owner> Shorthand(T Owner::*member, const char* doc) {
  Field<Owner> field = Make("", member, Anything(), doc, Presence::kShorthand);
  field.read = [member](const toml::node& node, Owner& owner) {
    Owner whole;
    std::string wrong = ReadValue(node, whole.*member);
    if (wrong.empty()) owner = whole;
    return wrong;
  };
  return field;
}

// ---- The table ----------------------------------------------------------------------------------

std::vector<Field<BatchConfig>> BatchFields() {
  using B = BatchConfig;
  return {
      Shorthand(&B::final, "Samples of every step: short for { final = N }"),
      Make("initial", &B::initial, Integers{}, "Samples of the first step of a ramp"),
      Make("increment", &B::increment, Integers{}, "Samples by which the ramp grows the step"),
      Make("ramp_samples", &B::ramp_samples, Integers{},
           "Samples over which the ramp goes from initial to final; 0: no ramp"),
      Required("final", &B::final, Integers{1}, "Samples of a step behind the ramp"),
  };
}

std::vector<Field<RateConfig>> RateFields() {
  using R = RateConfig;
  return {
      Shorthand(&R::peak, "Learning rate of every step: short for { peak = X }"),
      Required("peak", &R::peak, Numbers{.or_least = false, .example = "3e-4"},
               "Learning rate at the end of the warm-up"),
      Make("final", &R::final, Numbers{}, "Learning rate at the end of the phase"),
      Make("warmup_samples", &R::warmup_samples, Integers{},
           "Samples over which the rate rises from 0"),
      Make("decay", &R::decay, Choices{{"cosine", "linear", "constant"}},
           "How the rate goes from peak to final: cosine, linear or constant"),
  };
}

std::vector<PhaseField> MakePhaseFields() {
  using P = PhaseConfig;
  std::vector<PhaseField> fields = {
      Required("name", &P::name, Name{}, "Name of the phase, unique in the run"),
      Required("samples", &P::samples, Integers{1},
               "Samples of the phase, which ends when a further whole step would exceed them"),
      Required("context", &P::context, Integers{1, int64_t{1} << 31}, "Tokens per sample"),
      Make("rope_theta", &P::rope_theta, Numbers{.or_least = false},
           "Base of the rotary embedding"),
  };
  Append(fields, "batch", &P::batch, BatchFields());
  Append(fields, "rate", &P::rate, RateFields());
  fields.push_back(Required("mixture", &P::mixture, Anything(), "Data sources and their weights"));
  fields = Frozen(std::move(fields));
  fields.push_back(
      Nodes(&P::nodes, true, "Nodes for this phase in place of [job] nodes: N or MIN-MAX"));
  return fields;
}

// ValidateModel knows the ranges: model/ checks what it is given by whom ever.
std::vector<Field<ModelConfig>> ModelFields() {
  using M = ModelConfig;
  const Anything any;
  return {
      Make("kind", &M::kind, any, "Family of models: llama"),
      Required("layers", &M::layers, any, "Transformer blocks"),
      Required("hidden", &M::hidden, any, "Width of the residual stream"),
      Required("heads", &M::heads, any, "Query heads"),
      Make("kv_heads", &M::kv_heads, any, "Key/value heads; 0: as many as heads"),
      Make("head_dim", &M::head_dim, any, "Width of a head; 0: hidden / heads"),
      Required("ffn", &M::ffn, any, "Inner width of the feed-forward block"),
      Required("vocab", &M::vocab, any, "Rows of the embedding and of the output head"),
      Make("norm_eps", &M::norm_eps, any, "Epsilon of every RMSNorm"),
      Make("init_range", &M::init_range, any, "Standard deviation of initial weights"),
      Make("scaled_init", &M::scaled_init, any,
           "Whether output projections start at init_range / sqrt(2 layers)"),
      Make("tied_embeddings", &M::tied_embeddings, any,
           "Whether the head reads the embedding (not implemented)"),
      Make("position", &M::position, any, "rope, or none for no positions"),
      Make("activation", &M::activation, any, "Of the feed-forward block: swiglu"),
  };
}

std::vector<Field<OptimizerConfig>> OptimizerFields() {
  using O = OptimizerConfig;
  return {
      Make("kind", &O::kind, Choices{{"adamw"}}, "Optimizer: adamw"),
      Make("beta1", &O::beta1, Numbers{.below = 1}, "Decay of the first moment"),
      Make("beta2", &O::beta2, Numbers{.below = 1}, "Decay of the second moment"),
      Make("eps", &O::eps, Numbers{.or_least = false, .below = 1},
           "Added to the root of the second moment"),
      Make("weight_decay", &O::weight_decay, Numbers{.below = 1},
           "Weight decay of matrices; norms never decay"),
      Make("clip", &O::clip, Numbers{},
           "Most that the global gradient norm may be; 0: no clipping"),
  };
}

std::vector<Field<NumericsConfig>> NumericsFields() {
  using N = NumericsConfig;
  std::vector<Field<N>> fields = {
      Make("dtype", &N::dtype, Choices{{"fp32", "bf16"}},
           "Type of weights and activations: fp32 or bf16"),
      Make("tensor_shards", &N::tensor_shards, Integers{1, 64},
           "Slices of every sliced tensor, a power of two; layout.tensor divides it"),
      Make("micro_batch", &N::micro_batch, Integers{1, 1 << 20}, "Samples of a micro-batch"),
      Make("leaf", &N::leaf, Integers{1, 1 << 20}, "Micro-batches of a leaf"),
      Make("atom_elements", &N::atom_elements, Integers{1, 1 << 30},
           "The most elements of an atom"),
      Make("threads", &N::threads, Integers{1, 1024}, "Threads of a rank inside matmuls"),
      Make("backend", &N::backend, Choices{{"auto", "cpu", "cuda"}},
           "cpu or cuda; auto: cuda where the run's first start finds a GPU, else cpu"),
      Make("isa", &N::isa, NotEmpty(),
           "Instruction set of the backend, or kind of GPU; auto: what the first start finds"),
  };
  for (Field<N>& field : fields) field.auto_matches = field.key == "backend" || field.key == "isa";
  return fields;
}

Field<LayoutConfig> DataField() {
  using L = LayoutConfig;
  Field<L> field = Make("data", &L::data, Integers{0, 1 << 20},
                        "Replicas; \"auto\": what the ranks have room for");
  field.read = [](const toml::node& node, L& layout) -> std::string {
    if (const auto text = node.value_exact<std::string>(); text && *text == "auto")
      layout.data = 0;
    else if (const auto count = node.value_exact<int64_t>(); count && *count >= 1)
      layout.data = *count;
    else
      return "must be \"auto\" or a number of replicas from 1";
    return "";
  };
  field.print = [](const L& layout) {
    return layout.data == 0 ? PrintValue(std::string("auto")) : PrintValue(layout.data);
  };
  return field;
}

std::vector<Field<LayoutConfig>> LayoutFields() {
  using L = LayoutConfig;
  return {
      Make("tensor", &L::tensor, Integers{1, 64}, "Ranks that share a block's matmuls"),
      Make("pipeline", &L::pipeline, Integers{1, 1 << 14}, "Ranks that share the blocks"),
      DataField(),
      Make("zero", &L::zero, Integers{0, 3},
           "Sharded over replicas: 0 nothing, 1 optimizer, 2 and gradients, 3 and parameters"),
      Make("virtual_stages", &L::virtual_stages, Integers{1, 1 << 14},
           "Model chunks of a pipeline rank; above 1 the schedule is interleaved"),
      Make("recompute", &L::recompute, Choices{{"none", "full"}},
           "Activations kept (none), or recomputed block by block (full)"),
      Make("transport", &L::transport, Choices{{"ucx", "libfabric"}},
           "Between ranks: ucx or libfabric"),
      Make("device_transport", &L::device_transport, Choices{{"auto", "nccl", "staged"}},
           "Between GPUs: nccl, staged (through the host), or auto"),
      Make("network", &L::network, Anything(),
           "For the transport: UCX_TLS or a libfabric provider; empty: its choice"),
  };
}

std::vector<Field<JobConfig>> JobFields() {
  using J = JobConfig;
  return {
      Make("time_limit", &J::time_limit, Durations(), "Longest that one job may last"),
      Nodes(&J::nodes, false, "Nodes of one job: N or MIN-MAX"),
      Make("spares", &J::spares, Integers{0, 1 << 20}, "Nodes besides, which wait for a failure"),
      Make("ranks_per_node", &J::ranks_per_node, Integers{1, 1024},
           "Ranks of a node, usually one per GPU"),
      Make("health_check", &J::health_check, Anything(),
           "Try each rank's device before the first step: products, memory, link to the host"),
      Make("slow_window", &J::slow_window, WindowsOrNone(),
           "How long a rank must be slow until it is named; 0s: nobody is looked at"),
      Make("slow_percent", &J::slow_percent, Integers{110, 10000},
           "What the work of a slow rank takes of that of others, at least"),
      Make("slow_retry", &J::slow_retry, Durations(),
           "How long a node that was slow is done without; twice as long each time"),
      Make("leave_margin", &J::leave_margin, Durations(),
           "Of a job's time, kept when all that it does to leave is done"),
      Make("interface", &J::interface, Anything(),
           "Where agents reach each other, for example \"ib0\"; empty: the node's own name"),
      Make("hook", &J::hook, PathOrNone{},
           "Program that is told when jobs of a chain begin and leave: docs/operating.md"),
      Make("no_progress_jobs", &J::no_progress_jobs, Integers{1, 1000},
           "Jobs in a row without a new checkpoint after which the chain stops"),
  };
}

std::vector<Field<SlurmConfig>> SlurmFields() {
  using S = SlurmConfig;
  return {
      Make("site", &S::site, Anything(), "Profile of the site: perdure submit --list-sites"),
      Make("account", &S::account, OneWord{}, "sbatch --account"),
      Make("account_suffix", &S::account_suffix, OneWord{},
           "What the site has behind accounts: @h100"),
      Make("partition", &S::partition, OneWord{}, "sbatch --partition"),
      Make("qos", &S::qos, OneWord{}, "sbatch --qos"),
      Make("constraint", &S::constraint, OneLine{}, "sbatch --constraint"),
      Make("reservation", &S::reservation, OneWord{}, "sbatch --reservation"),
      Make("options", &S::options, Options{}, "Of sbatch besides, for example [\"--gres=gpu:4\"]"),
      Make("srun", &S::srun, Options{}, "Of srun besides, for example [\"--cpu-bind=none\"]"),
      Make("modules", &S::modules, Words{}, "module load, in this order"),
      Make("environment", &S::environment, Variables{},
           "Exported in each job, for example [\"NCCL_DEBUG=WARN\"]"),
  };
}

std::vector<Field<ExecConfig>> ExecFields() {
  using E = ExecConfig;
  return {
      Make("command", &E::command, Command{},
           "A trainer of your own, run by each rank in place of ours: perdure run --exec"),
      Make("directory", &E::directory, PathOrNone{},
           "Where it runs; empty: where perdure run or submit was called"),
      Make("signal", &E::signal, Choices{{"TERM", "USR1", "USR2", "INT", "HUP"}},
           "That tells it to save what it has and to leave"),
      Make("leave", &E::leave, Durations(), "How long that may take; then it is killed"),
      Make("stall", &E::stall, WindowsOrNone(),
           "Without a line in PERDURE_PROGRESS for so long it hangs; 0s: nobody looks"),
  };
}

std::vector<Field<CheckpointConfig>> CheckpointFields() {
  using C = CheckpointConfig;
  return {
      Make("every", &C::every, Durations(),
           "Time between checkpoints; phase and job ends have one"),
      Make("every_steps", &C::every_steps, Integers{}, "Steps between checkpoints, besides; 0: no"),
      Make("keep_last", &C::keep_last, Integers{1, 1 << 20}, "Newest checkpoints that are kept"),
      Make("keep_every_steps", &C::keep_every_steps, Integers{},
           "Keep for ever what lies at multiples of this, and phase ends; 0: phase ends only"),
      Files(&C::files),
      Make(
          "asynchronous", &C::asynchronous, Anything(),
          "Freeze the state in one copy and write behind training; false: no copy, training waits"),
      Make("write_mib_per_second", &C::write_mib_per_second, Integers{0, 1 << 20},
           "Most that one rank writes; 0: as fast as it goes"),
      Make(
          "export_steps", &C::export_steps, Steps{},
          "Steps that have a checkpoint and are exported to RUN/export, for example [5000, 10000]"),
      Make("export_every_steps", &C::export_every_steps, Integers{},
           "Export at multiples of this, besides; 0: no"),
      Make("export_format", &C::export_format, Choices{{"hf", "universal", "dcp"}},
           "Of these exports: hf, universal or dcp"),
      Make("refresh", &C::refresh, Choices{{"none", "access"}},
           "access: touch kept files once a day, against purges, where the site allows it"),
  };
}

std::vector<Field<SnapshotConfig>> SnapshotFields() {
  using S = SnapshotConfig;
  return {
      Make("every", &S::every, Integers{},
           "Steps between copies of the state in memory of the nodes; 0: none"),
      Make("directory", &S::directory, AbsolutePath{},
           "Of a tmpfs on every node: where those copies are kept"),
      Make("peers", &S::peers, Anything(),
           "Whether each rank's copy also goes to a rank of another node"),
  };
}

std::vector<Field<IntegrityConfig>> IntegrityFields() {
  using I = IntegrityConfig;
  std::vector<Field<I>> fields = {
      Make("check", &I::check, Anything(),
           "Guard state, gradients and copies of parameters by sums, against flipped bits"),
      Make("audit_every", &I::audit_every, Integers{},
           "Steps in which each replica computes a leaf of another again, as a check; 0: none"),
      Make("bad_step", &I::bad_step, Choices{{"stop", "skip", "rollback"}},
           "A step that is not finite, or beyond the bounds below: stop, skip its samples, or go "
           "back"),
      Make("rollback_steps", &I::rollback_steps, Integers{1},
           "Steps before a bad one that are taken again too, on other samples"),
      Make("rollbacks_max", &I::rollbacks_max, Integers{1},
           "Times in a row that the run goes back without getting on; then it stops"),
      Make("grad_norm_max", &I::grad_norm_max, Numbers{},
           "Gradient norm above which a step is bad; 0: any finite one is good"),
      Make("spike_max", &I::spike_max, Numbers{},
           "A norm above so many medians of recent steps, or such a jump of the loss, is bad; 0: "
           "any is good"),
      Make("spike", &I::spike, Numbers{},
           "Norms above so many medians are computed twice before they count; 0: bad steps only"),
  };
  for (Field<I>& field : fields)
    field.frozen =
        field.key == "grad_norm_max" || field.key == "spike_max" || field.key == "rollback_steps";
  return fields;
}

std::vector<Field<MonitoringConfig>> MonitoringFields() {
  using M = MonitoringConfig;
  return {
      Make("endpoint", &M::endpoint, Anything(),
           "Whether the coordinator serves metrics to Prometheus: docs/operating.md"),
      Make("port", &M::port, Integers{0, 65535},
           "Port of the Prometheus endpoint; 0: any free one"),
      Make("interface", &M::interface, Anything(),
           "Where it listens, for example \"eth0\"; empty: where agents reach each other"),
      Make("token_file", &M::token_file, PathOrNone{},
           "File with a token that scrapers must show (Authorization: Bearer); empty: none"),
      Make("certificate", &M::certificate, PathOrNone{},
           "PEM file with certificate and key: then TLS alone; empty: none"),
      Make("textfile", &M::textfile, PathOrNone{},
           "Directory of node_exporter's textfile collector, written besides; empty: none"),
      Make("peak_tflops", &M::peak_tflops, Numbers{},
           "TFLOP/s that one rank's device reaches at best; 0: utilisation is not told"),
      Make("tensorboard", &M::tensorboard, Anything(), "Whether TensorBoard files are written"),
  };
}

std::vector<RunField> MakeRunFields() {
  using R = RunConfig;
  std::vector<RunField> fields = {
      Required("run.name", &R::name, Name{true},
               "Name of the run in metrics, reports and job names"),
      Make("run.seed", &R::seed, Seeds(), "Seed of initial weights and of the sample order"),
      Make("data.tokenizer", &R::tokenizer, NotEmpty(),
           "byte, or the path of a SentencePiece model, relative to the data directory"),
  };
  Append(fields, "model", &R::model, ModelFields());
  Append(fields, "optimizer", &R::optimizer, OptimizerFields());
  Append(fields, "numerics", &R::numerics, NumericsFields());
  fields = Frozen(std::move(fields));
  Append(fields, "layout", &R::layout, LayoutFields());
  Append(fields, "job", &R::job, JobFields());
  Append(fields, "slurm", &R::slurm, SlurmFields());
  Append(fields, "exec", &R::exec, ExecFields());
  Append(fields, "checkpoint", &R::checkpoint, CheckpointFields());
  Append(fields, "snapshot", &R::snapshot, SnapshotFields());
  Append(fields, "integrity", &R::integrity, IntegrityFields());
  Append(fields, "monitoring", &R::monitoring, MonitoringFields());
  return fields;
}

}  // namespace

std::string PrintCommand(const std::vector<std::string>& command) { return PrintValue(command); }

bool IsOfForeignRuns(const std::string& key) {
  return key == "run.name" || key.starts_with("job.") || key.starts_with("slurm.") ||
         key.starts_with("exec.") || key.starts_with("monitoring.");
}

const std::vector<RunField>& RunFields() {
  static const std::vector<RunField> fields = MakeRunFields();
  return fields;
}

const std::vector<PhaseField>& PhaseFields() {
  static const std::vector<PhaseField> fields = MakePhaseFields();
  return fields;
}

const std::vector<SourceField>& SourceFields() {
  using S = SourceConfig;
  static const std::vector<SourceField> fields = {
      Required("path", &S::path, NotEmpty(), "Prefix of PATH.bin and PATH.idx"),
      Required("weight", &S::weight, Numbers{.or_least = false}, "Share of the samples"),
  };
  return fields;
}

}  // namespace perdure
