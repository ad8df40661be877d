// ValidateConfig. Every message begins with the key at fault, then ` = value`, and offers a value
// that would do; ParseConfig finds the key's place in the file by it.
#include <algorithm>
#include <set>

#include "launch/config.h"
#include "launch/config_fields.h"
#include "model/parameters.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr int64_t kMostTokens = int64_t{1} << 62;
constexpr int64_t kMostAtoms = int64_t{1} << 24;

bool IsPowerOfTwo(int64_t value) { return value > 0 && (value & (value - 1)) == 0; }

int64_t PowerOfTwoBelow(int64_t value) {
  int64_t power = 1;
  while (power * 2 <= value) power *= 2;
  return power;
}

// The multiple of `unit` nearest to `value`, at least `unit`.
int64_t NearestMultiple(int64_t value, int64_t unit) {
  return std::max(unit, (value + unit / 2) / unit * unit);
}

// Ranges and choices of the table.
template <typename Owner>
absl::Status CheckFields(const std::string& label, const std::vector<Field<Owner>>& fields,
                         const Owner& owner) {
  const Owner defaults;
  for (const Field<Owner>& field : fields) {
    if (field.presence == Presence::kShorthand) continue;
    const std::string wrong = field.check(owner);
    if (wrong.empty()) continue;
    const bool hint = field.presence == Presence::kOptional && field.check(defaults).empty();
    return InvalidArgument("{}{} = {} {}{}", label, field.key, field.print(owner), wrong,
                           hint ? fmt::format("; the default is {}", field.print(defaults)) : "");
  }
  return absl::OkStatus();
}

absl::Status CheckBatch(const std::string& label, const PhaseConfig& phase, int64_t micro_batch) {
  const BatchConfig& batch = phase.batch;
  const bool ramp = batch.ramp_samples > 0;
  if (!ramp && batch.initial != 0 && batch.initial != batch.final)
    return InvalidArgument(
        "{}batch.initial = {} is not final = {}, but there is no ramp: set batch.ramp_samples, or "
        "leave initial out",
        label, batch.initial, batch.final);
  if (ramp && (batch.initial < 1 || batch.initial >= batch.final))
    return InvalidArgument(
        "{}batch.initial = {} must be at least 1 and below final = {} for a ramp; {} would do, or "
        "leave the ramp out: batch = {}",
        label, batch.initial, batch.final, micro_batch, batch.final);
  if (ramp && (batch.increment < 1 || (batch.final - batch.initial) % batch.increment != 0))
    return InvalidArgument("{}batch.increment = {} must divide final - initial = {}; {} would do",
                           label, batch.increment, batch.final - batch.initial,
                           batch.final - batch.initial);
  if (batch.ramp_samples > phase.samples)
    return InvalidArgument("{}batch.ramp_samples = {} exceed the phase's samples = {}; {} would do",
                           label, batch.ramp_samples, phase.samples, phase.samples);
  struct Size {
    const char* key;
    int64_t value;
  };
  for (const auto& [key, value] :
       {Size{"initial", ramp ? batch.initial : 0}, Size{"increment", ramp ? batch.increment : 0},
        Size{"final", batch.final}}) {
    if (value % micro_batch == 0) continue;
    return InvalidArgument(
        "{}batch.{} = {} is not a multiple of numerics.micro_batch = {}; {} would do", label, key,
        value, micro_batch, NearestMultiple(value, micro_batch));
  }
  return absl::OkStatus();
}

absl::Status CheckRate(const std::string& label, const PhaseConfig& phase) {
  const RateConfig& rate = phase.rate;
  if (rate.decay == "constant" && rate.final != 0 && rate.final != rate.peak)
    return InvalidArgument(
        "{}rate.final = {} is never reached with decay = \"constant\"; use \"cosine\" or "
        "\"linear\", or leave it out",
        label, rate.final);
  if (rate.final > rate.peak)
    return InvalidArgument("{}rate.final = {} is above peak = {}; {} would do", label, rate.final,
                           rate.peak, rate.peak / 10);
  if (rate.warmup_samples >= phase.samples)
    return InvalidArgument(
        "{}rate.warmup_samples = {} must be fewer than the phase's samples = {}; {} would do",
        label, rate.warmup_samples, phase.samples, phase.samples / 100);
  return absl::OkStatus();
}

absl::Status CheckMixture(const std::string& label, const PhaseConfig& phase) {
  if (phase.mixture.empty())
    return InvalidArgument(
        "{}mixture is empty: name at least one source, [ {{ path = \"data/en\", weight = 1.0 }} ]",
        label);
  std::set<std::string> paths;
  for (size_t i = 0; i < phase.mixture.size(); ++i) {
    const SourceConfig& source = phase.mixture[i];
    for (const SourceField& field : SourceFields())
      if (const std::string wrong = field.check(source); !wrong.empty())
        return InvalidArgument("{}mixture entry {}: {} = {} {}; for example {}", label, i + 1,
                               field.key, field.print(source), wrong,
                               field.key == "weight" ? "0.5" : "\"data/en\"");
    if (!paths.insert(source.path).second)
      return InvalidArgument("{}mixture names \"{}\" twice: keep one entry with both weights",
                             label, source.path);
  }
  return absl::OkStatus();
}

absl::Status CheckPhase(const std::string& label, const PhaseConfig& phase,
                        const NumericsConfig& numerics) {
  RETURN_IF_ERROR(CheckBatch(label, phase, numerics.micro_batch));
  RETURN_IF_ERROR(CheckRate(label, phase));
  RETURN_IF_ERROR(CheckMixture(label, phase));
  const int64_t first = phase.batch.ramp_samples > 0 ? phase.batch.initial : phase.batch.final;
  if (phase.samples < first)
    return InvalidArgument("{}samples = {} do not fill one step of {}; {} would do", label,
                           phase.samples, first, first);
  const int64_t rows = numerics.micro_batch * phase.context;
  if (rows % numerics.tensor_shards != 0)
    return InvalidArgument(
        "{}context = {} times numerics.micro_batch = {} is not a multiple of "
        "numerics.tensor_shards = {}; a context of {} would do",
        label, phase.context, numerics.micro_batch, numerics.tensor_shards,
        NearestMultiple(phase.context, numerics.tensor_shards));
  return absl::OkStatus();
}

absl::Status CheckPhases(const RunConfig& config) {
  if (config.phases.empty())
    return InvalidArgument(
        "phase is missing: a run needs at least one [[phase]] with name, samples, context, batch, "
        "rate and mixture");
  std::set<std::string> names;
  int64_t tokens = 0;
  for (const PhaseConfig& phase : config.phases) {
    const std::string label = fmt::format("phase.{}.", phase.name);
    RETURN_IF_ERROR(CheckFields(label, PhaseFields(), phase));
    RETURN_IF_ERROR(CheckPhase(label, phase, config.numerics));
    if (!names.insert(phase.name).second)
      return InvalidArgument("{}name = \"{}\" is the name of two phases; \"{}-2\" would do", label,
                             phase.name, phase.name);
    // Samples count tokens in 64 bits, with room for sums.
    if (phase.samples > (kMostTokens - tokens) / phase.context)
      return InvalidArgument(
          "{}samples = {} of context = {} bring the run above 2^62 tokens; at most {} would do",
          label, phase.samples, phase.context, (kMostTokens - tokens) / phase.context);
    tokens += phase.samples * phase.context;
  }
  return absl::OkStatus();
}

absl::Status CheckAtoms(const RunConfig& config) {
  const int64_t parameters = CountParameters(config.model);
  if (parameters / config.numerics.atom_elements < kMostAtoms) return absl::OkStatus();
  return InvalidArgument(
      "numerics.atom_elements = {} cuts {} parameters into {} atoms, more than {}; {} would do",
      config.numerics.atom_elements, parameters, parameters / config.numerics.atom_elements,
      kMostAtoms, PowerOfTwoBelow(parameters / kMostAtoms) * 4);
}

absl::Status CheckLayout(const RunConfig& config) {
  const LayoutConfig& layout = config.layout;
  const int64_t shards = config.numerics.tensor_shards;
  if (!IsPowerOfTwo(layout.tensor) || shards % layout.tensor != 0)
    return InvalidArgument(
        "layout.tensor = {} must be a power of two that divides numerics.tensor_shards = {}; {} "
        "would do",
        layout.tensor, shards, PowerOfTwoBelow(std::min(layout.tensor, shards)));
  const int64_t stages = layout.pipeline * layout.virtual_stages;
  if (stages > config.model.layers)
    return InvalidArgument(
        "layout.pipeline = {} times virtual_stages = {} is more than model.layers = {}; pipeline = "
        "{}{} would do",
        layout.pipeline, layout.virtual_stages, config.model.layers,
        std::min(layout.pipeline, config.model.layers),
        layout.virtual_stages > 1 ? " with virtual_stages = 1" : "");
  if (layout.virtual_stages > 1 && layout.pipeline == 1)
    return InvalidArgument(
        "layout.virtual_stages = {} needs layout.pipeline above 1; virtual_stages = 1 would do",
        layout.virtual_stages);
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateConfig(const RunConfig& config) {
  if (config.foreign()) {
    std::vector<RunField> fields = RunFields();
    std::erase_if(fields, [](const RunField& field) { return !IsOfForeignRuns(field.key); });
    return CheckFields("", fields, config);
  }
  RETURN_IF_ERROR(CheckFields("", RunFields(), config));
  const int64_t shards = config.numerics.tensor_shards;
  if (!IsPowerOfTwo(shards))
    return InvalidArgument(
        "numerics.tensor_shards = {} must be a power of two up to 64; {} would do", shards,
        PowerOfTwoBelow(shards));
  RETURN_IF_ERROR(ValidateModel(config.model, shards));
  RETURN_IF_ERROR(CheckAtoms(config));
  RETURN_IF_ERROR(CheckPhases(config));
  return CheckLayout(config);
}

}  // namespace perdure
