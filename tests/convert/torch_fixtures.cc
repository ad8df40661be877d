#include "tests/convert/torch_fixtures.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "ckpt/atom_reader.h"
#include "ckpt/convert/crc32.h"
#include "ckpt/convert/torch_file.h"
#include "model/parameters.h"
#include "runtime/base/status.h"
#include "tests/ckpt/test_state.h"

namespace perdure {

namespace fs = std::filesystem;

std::string TorchFixture(const std::string& name) {
  return std::string(PERDURE_TORCH_FIXTURES) + "/" + name;
}

ModelConfig SmallModel(int64_t layers) {
  return {.layers = layers,
          .hidden = 8,
          .heads = 8,
          .kv_heads = 4,
          .head_dim = 2,
          .ffn = 12,
          .vocab = 18};
}

AtomTable SmallTable(int64_t layers, int64_t slices, int64_t atom_elements) {
  return AtomTable(ModelTensors(SmallModel(layers), slices), atom_elements);
}

WholeState ReadWhole(StateSource& source, const AtomTable& table) {
  WholeState whole(table.tensors().size());
  for (size_t t = 0; t < whole.size(); ++t)
    for (auto& part : whole[t]) part.resize(static_cast<size_t>(table.tensors()[t].size()));
  const auto visit = [&](const AtomState& state, int64_t count) {
    const Atom& atom = table.atoms()[static_cast<size_t>(state.atom)];
    const auto tensor = static_cast<size_t>(atom.tensor);
    for (int64_t i = 0; i < count; ++i) {
      const auto [row, col] = table.Locate(atom, i);
      const auto at = static_cast<size_t>(row * table.tensors()[tensor].cols + col);
      for (size_t part = 0; part < state.parts.size(); ++part)
        whole[tensor][part][at] = state.parts[part][i];
    }
  };
  EXPECT_OK(ForEachAtom(source, table, {0, std::ssize(table.atoms())}, visit));
  return whole;
}

bool SameBits(const WholeState& a, const WholeState& b) {
  if (a.size() != b.size()) return false;
  for (size_t t = 0; t < a.size(); ++t)
    for (size_t part = 0; part < a[t].size(); ++part)
      if (a[t][part].size() != b[t][part].size() ||
          std::memcmp(a[t][part].data(), b[t][part].data(), a[t][part].size() * sizeof(float)) != 0)
        return false;
  return true;
}

void ExpectGolden(const std::string& label, StateSource& source, const AtomTable& table) {
  std::map<std::string, uint32_t> golden;  // By "name part".
  std::istringstream lines(Slurp(std::string(PERDURE_SOURCE_DIR) + "/tests/convert/golden.txt"));
  std::string of, name, part, crc;
  while (lines >> of >> name >> part >> crc)
    if (of == label)
      golden[name + " " + part] = static_cast<uint32_t>(std::stoul(crc, nullptr, 16));
  EXPECT_FALSE(golden.empty()) << label;
  const WholeState whole = ReadWhole(source, table);
  size_t compared = 0;
  for (size_t t = 0; t < whole.size(); ++t)
    for (size_t p = 0; p < kStateParts.size(); ++p) {
      const auto line = golden.find(table.tensors()[t].name + " " + std::string(kStateParts[p]));
      if (line == golden.end()) continue;
      const std::vector<float>& values = whole[t][p];
      EXPECT_EQ(UpdateCrc32(0, values.data(), values.size() * sizeof(float)), line->second)
          << label << " " << line->first;
      ++compared;
    }
  EXPECT_EQ(compared, golden.size());
}

absl::Status RewritePickle(const std::string& path,
                           const std::function<void(std::string& pickle)>& change) {
  std::string bytes = Slurp(path);
  ZipRecord record;
  {
    ASSIGN_OR_RETURN(const TorchFile file, TorchFile::Open(path));
    record = *file.zip().Find("data.pkl");
  }
  std::string pickle = bytes.substr(record.offset, record.bytes);
  change(pickle);
  EXPECT_EQ(pickle.size(), record.bytes);
  bytes.replace(record.offset, pickle.size(), pickle);
  const uint32_t crc = UpdateCrc32(0, pickle.data(), pickle.size());
  // The directory's entry is the last place that names the record.
  const size_t name = bytes.rfind("/data.pkl");
  const size_t entry = bytes.rfind("PK\1\2", name);
  std::memcpy(&bytes[entry + 16], &crc, sizeof(crc));
  Spill(path, bytes);
  return absl::OkStatus();
}

std::string MakeZip(const std::vector<std::pair<std::string, std::string>>& records) {
  std::string bytes, directory;
  const auto append = [](std::string& to, uint64_t value, int count) {
    for (int i = 0; i < count; ++i) to += static_cast<char>(value >> (8 * i) & 0xFF);
  };
  for (const auto& [name, content] : records) {
    const size_t header = bytes.size();
    std::string common;
    append(common, 20, 2);
    append(common, 0, 8);
    append(common, UpdateCrc32(0, content.data(), content.size()), 4);
    append(common, content.size(), 4);
    append(common, content.size(), 4);
    append(common, name.size(), 2);
    append(common, 0, 2);
    bytes += "PK\3\4" + common + name + content;
    directory += "PK\1\2";
    append(directory, 20, 2);
    directory += common;
    directory.append(10, '\0');
    append(directory, header, 4);
    directory += name;
  }
  const size_t begin = bytes.size();
  bytes += directory + "PK\5\6";
  append(bytes, 0, 4);
  append(bytes, records.size(), 2);
  append(bytes, records.size(), 2);
  append(bytes, directory.size(), 4);
  append(bytes, begin, 4);
  append(bytes, 0, 2);
  return bytes;
}

std::string CopyFixture(const std::string& name, const std::string& to) {
  const std::string path = to + "/" + name;
  fs::copy(TorchFixture(name), path, fs::copy_options::recursive);
  return path;
}

}  // namespace perdure
