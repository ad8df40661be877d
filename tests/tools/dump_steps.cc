// dump_steps RUN.toml DATA_DIR STEPS OUT [key=value]...: what a run's first steps consist of, for
// oracles in other languages. OUT.json: per step batch, context, rate, rope_theta; OUT.i32: the
// steps' samples, context + 1 tokens each.
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "launch/config.h"
#include "runtime/base/status.h"
#include "runtime/data/sample_order.h"
#include "runtime/train/schedule_math.h"

namespace {

absl::Status Dump(const std::vector<std::string>& arguments) {
  const std::vector<std::string> settings(arguments.begin() + 4, arguments.end());
  ASSIGN_OR_RETURN(const perdure::RunConfig config, perdure::LoadConfig(arguments[0], settings));
  const perdure::StepSchedule schedule(config);
  const int64_t steps = std::min<int64_t>(std::stoll(arguments[2]), schedule.steps());
  std::ofstream tokens(arguments[3] + ".i32", std::ios::binary);
  nlohmann::json list = nlohmann::json::array();
  std::unique_ptr<perdure::SampleOrder> order;
  int phase = -1;
  for (int64_t step = 0; step < steps; ++step) {
    const perdure::StepInfo info = schedule.At(step);
    const perdure::PhaseConfig& config_phase = config.phases[static_cast<size_t>(info.phase)];
    if (info.phase != phase) {
      std::vector<perdure::MixtureSource> mixture;
      for (const auto& source : config_phase.mixture)
        mixture.push_back({arguments[1] + "/" + source.path, source.weight});
      phase = info.phase;
      ASSIGN_OR_RETURN(order, perdure::SampleOrder::Open(mixture, info.context, config.model.vocab,
                                                         config.seed, phase));
    }
    std::vector<int32_t> sample(static_cast<size_t>(info.context) + 1);
    for (int64_t i = 0; i < info.batch; ++i) {
      RETURN_IF_ERROR(order->Read(order->Locate(info.phase_sample + i), sample));
      tokens.write(reinterpret_cast<const char*>(sample.data()),
                   static_cast<std::streamsize>(sample.size() * sizeof(int32_t)));
    }
    list.push_back({{"batch", info.batch},
                    {"context", info.context},
                    {"rate", info.rate},
                    {"rope_theta", config_phase.rope_theta}});
  }
  std::ofstream(arguments[3] + ".json") << list.dump();
  return tokens.good() ? absl::OkStatus()
                       : perdure::Internal("writing {}.i32 failed", arguments[3]);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) {
    std::fprintf(stderr, "usage: dump_steps RUN.toml DATA_DIR STEPS OUT [key=value]...\n");
    return 2;
  }
  const absl::Status status = Dump(std::vector<std::string>(argv + 1, argv + argc));
  if (!status.ok()) std::fprintf(stderr, "dump_steps: %s\n", perdure::Message(status).c_str());
  return status.ok() ? 0 : 1;
}
