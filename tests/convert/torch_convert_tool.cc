// What torch_oracle.py and deepspeed_oracle.py call.
//
// torch_convert_tool export DIRECTORY: writes DIRECTORY/universal, DIRECTORY/dcp (of two files per
// part) and DIRECTORY/plain.pt of the state of the fixture t2p2d2.
// torch_convert_tool megatron DIRECTORY LAYERS: imports, and prints the CRC of each tensor's parts.
#include <cstdio>
#include <string>
#include <vector>

#include "ckpt/convert/crc32.h"
#include "ckpt/convert/dcp.h"
#include "ckpt/convert/foreign_file.h"
#include "ckpt/convert/megatron_deepspeed.h"
#include "ckpt/convert/torch_writer.h"
#include "ckpt/convert/universal.h"
#include "runtime/base/status.h"
#include "tests/convert/torch_fixtures.h"

namespace perdure {
namespace {

absl::Status WritePlain(const std::string& path) {
  const auto str = [](const char* text) { return TorchValue{std::string(text)}; };
  const TorchDict root = {
      {str("matrix"), {TorchFloats{{2, 3}}}},
      {str("scalar"), {TorchFloats{{}}}},
      {str("none"), {TorchFloats{{0, 4}}}},
      {str("ints"), {TorchList{{int64_t{0}}, {int64_t{-1}}, {int64_t{300}}, {int64_t{1} << 40}}}},
      {str("texts"), {TorchList{str("h\xc3\xa9llo"), {2.5}, {true}, {}}}},
      {str("dict"), {TorchDict{{{int64_t{3}}, str("three")}}}}};
  ASSIGN_OR_RETURN(File file, CreateExportFile(path));
  ASSIGN_OR_RETURN(TorchWriter writer, TorchWriter::Begin(file, 0, {root}));
  const float values[] = {0, 1, 2, 3, 4, 5}, scalar = 120;
  RETURN_IF_ERROR(writer.Write(0, 3, {values + 3, 3}));
  RETURN_IF_ERROR(writer.Write(0, 0, {values, 3}));
  RETURN_IF_ERROR(writer.Write(1, 0, {&scalar, 1}));
  return writer.Finish().status();
}

absl::Status Export(const std::string& directory) {
  const ModelConfig model = SmallModel(2);
  const AtomTable table = SmallTable(2);
  ASSIGN_OR_RETURN(const auto source,
                   MegatronDeepSpeedSource::Open(TorchFixture("t2p2d2"), model, table));
  RETURN_IF_ERROR(ExportUniversal(*source, model, table,
                                  {.step = 120,
                                   .samples = 960,
                                   .tokens = 61440,
                                   .clip_grad = 1,
                                   .rate = 3e-4,
                                   .beta1 = 0.9,
                                   .beta2 = 0.95,
                                   .eps = 1e-8,
                                   .weight_decay = 0.1},
                                  directory + "/universal", "global_step120"));
  RETURN_IF_ERROR(ExportDcp(*source, table,
                            {.step = 120, .samples = 960, .tokens = 61440, .files = 2},
                            directory + "/dcp"));
  return WritePlain(directory + "/plain.pt");
}

absl::Status Import(const std::string& directory, int64_t layers) {
  const AtomTable table = SmallTable(layers);
  ASSIGN_OR_RETURN(const auto source,
                   MegatronDeepSpeedSource::Open(directory, SmallModel(layers), table));
  RETURN_IF_ERROR(source->Verify());
  fmt::print("{}, iteration {}, optimizer step {}\n", source->layout(),
             source->progress().iteration, source->progress().optimizer_step);
  const WholeState whole = ReadWhole(*source, table);
  for (size_t t = 0; t < whole.size(); ++t)
    for (size_t part = 0; part < kStateParts.size(); ++part) {
      const std::vector<float>& values = whole[t][part];
      fmt::print("{} {} {:08x}\n", table.tensors()[t].name, kStateParts[part],
                 UpdateCrc32(0, values.data(), values.size() * sizeof(float)));
    }
  return absl::OkStatus();
}

absl::Status Run(const std::vector<std::string>& words) {
  if (words.size() == 2 && words[0] == "export") return Export(words[1]);
  if (words.size() == 3 && words[0] == "megatron") return Import(words[1], std::stoll(words[2]));
  return InvalidArgument("torch_convert_tool export DIRECTORY | megatron DIRECTORY LAYERS");
}

}  // namespace
}  // namespace perdure

int main(int argc, char** argv) {
  const absl::Status status = perdure::Run({argv + 1, argv + argc});
  if (!status.ok()) std::fprintf(stderr, "%s\n", perdure::Message(status).c_str());
  return status.ok() ? 0 : 1;
}
