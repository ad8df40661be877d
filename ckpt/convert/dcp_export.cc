#include <array>
#include <filesystem>
#include <utility>

#include "ckpt/atom_reader.h"
#include "ckpt/convert/dcp.h"
#include "ckpt/convert/foreign_file.h"
#include "ckpt/convert/torch_writer.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

using Keys = std::vector<std::string>;

// "optim.state." -> {"optim", "state"}.
Keys SplitPrefix(const std::string& prefix) {
  Keys keys;
  for (size_t at = 0; at < prefix.size();) {
    const size_t end = std::min(prefix.find('.', at), prefix.size());
    keys.push_back(prefix.substr(at, end - at));
    at = end + 1;
  }
  return keys;
}

class DcpExporter {
 public:
  DcpExporter(StateSource& source, const AtomTable& table, const DcpExport& about,
              const std::string& directory, const Progress& tell)
      : source_(source), table_(table), about_(about), directory_(directory), tell_(tell) {}

  absl::Status Write();

 private:
  struct Output {
    std::string name;
    File file;
    uint64_t bytes = 0;
  };

  absl::Status OpenOutputs(int index);
  absl::Status CloseOutputs();
  absl::Status WriteSlice(int64_t tensor, int64_t slice);
  absl::Status WriteSmall(const std::string& name, Keys path, const TorchValue& value);
  std::string NameOf(const TensorSpec& spec, size_t part) const;
  Keys PathOf(const TensorSpec& spec, size_t part) const;

  StateSource& source_;
  const AtomTable& table_;
  const DcpExport& about_;
  const std::string& directory_;
  const Progress& tell_;
  std::array<Output, kStatePartCount> outputs_;  // A file per part, all being written.
  DcpMetadata metadata_;
  std::map<std::string, Keys> paths_;
  int64_t done_ = 0;  // Elements.
};

absl::Status DcpExporter::OpenOutputs(int index) {
  for (size_t part = 0; part < outputs_.size(); ++part) {
    const std::string name = fmt::format("__{}_{}.distcp", index, part);
    ASSIGN_OR_RETURN(File file, CreateExportFile((fs::path(directory_) / name).string()));
    outputs_[part] = {.name = name, .file = std::move(file)};
  }
  return absl::OkStatus();
}

absl::Status DcpExporter::CloseOutputs() {
  for (Output& output : outputs_) {
    RETURN_IF_ERROR(output.file.Sync());
    RETURN_IF_ERROR(output.file.Close());
  }
  return absl::OkStatus();
}

std::string DcpExporter::NameOf(const TensorSpec& spec, size_t part) const {
  if (part == 0) return about_.model_prefix + spec.name;
  return fmt::format("{}{}.{}", about_.optimizer_prefix, spec.name, kStateParts[part]);
}

Keys DcpExporter::PathOf(const TensorSpec& spec, size_t part) const {
  Keys keys = SplitPrefix(part == 0 ? about_.model_prefix : about_.optimizer_prefix);
  keys.push_back(spec.name);
  if (part != 0) keys.emplace_back(kStateParts[part]);
  return keys;
}

// A slice's atoms are its elements in order, and so is the chunk.
absl::Status DcpExporter::WriteSlice(int64_t tensor, int64_t slice) {
  const TensorSpec& spec = table_.tensors()[static_cast<size_t>(tensor)];
  const int64_t begin = spec.SliceBegin(slice);
  DcpChunk chunk;
  if (spec.rows == 1) {
    chunk = {.offsets = {begin}, .sizes = {spec.SliceCols(slice)}};
  } else {
    const bool by_rows = spec.axis != SliceAxis::kCols;
    chunk = {.offsets = {by_rows ? begin : 0, by_rows ? 0 : begin},
             .sizes = {spec.SliceRows(slice), spec.SliceCols(slice)}};
  }
  std::vector<TorchWriter> writers;
  for (Output& output : outputs_) {
    ASSIGN_OR_RETURN(TorchWriter writer, TorchWriter::Begin(output.file, output.bytes,
                                                            TorchValue{TorchFloats{chunk.sizes}}));
    writers.push_back(std::move(writer));
  }
  absl::Status status;
  int64_t first = 0;
  const auto write = [&](const AtomState& state, int64_t count) {
    for (size_t part = 0; part < writers.size() && status.ok(); ++part)
      status = writers[part].Write(0, first, {state.parts[part], static_cast<size_t>(count)});
    first += count;
  };
  RETURN_IF_ERROR(ForEachAtom(source_, table_, table_.SliceAtoms(tensor, slice), write));
  RETURN_IF_ERROR(status);
  for (size_t part = 0; part < writers.size(); ++part) {
    Output& output = outputs_[part];
    chunk.place = {.file = output.name, .offset = output.bytes};
    ASSIGN_OR_RETURN(chunk.place.bytes, writers[part].Finish());
    output.bytes += chunk.place.bytes;
    metadata_.tensors[NameOf(spec, part)].chunks.push_back(chunk);
  }
  return absl::OkStatus();
}

// A number: an int as it is, the optimizer's step as a tensor, as torch keeps it.
absl::Status DcpExporter::WriteSmall(const std::string& name, Keys path, const TorchValue& value) {
  Output& output = outputs_[0];
  ASSIGN_OR_RETURN(TorchWriter writer, TorchWriter::Begin(output.file, output.bytes, value));
  DcpPlace place{.file = output.name, .offset = output.bytes};
  const bool is_tensor = std::holds_alternative<TorchFloats>(value.value);
  if (is_tensor) {
    const float step = static_cast<float>(about_.step);
    RETURN_IF_ERROR(writer.Write(0, 0, {&step, 1}));
  }
  ASSIGN_OR_RETURN(place.bytes, writer.Finish());
  output.bytes += place.bytes;
  if (is_tensor)
    metadata_.tensors[name].chunks.push_back({.place = place});
  else
    metadata_.values[name] = place;
  paths_[name] = std::move(path);
  return absl::OkStatus();
}

absl::Status DcpExporter::Write() {
  const int64_t total = table_.parameters();
  int opened = 0;
  for (int64_t t = 0; t < std::ssize(table_.tensors()); ++t) {
    const TensorSpec& spec = table_.tensors()[static_cast<size_t>(t)];
    // The next file begins where its share of the elements does.
    if (opened == 0 || (opened < about_.files && done_ >= total / about_.files * opened)) {
      if (opened > 0) RETURN_IF_ERROR(CloseOutputs());
      RETURN_IF_ERROR(OpenOutputs(opened++));
    }
    for (int64_t slice = 0; slice < spec.slices; ++slice)
      if (spec.SliceSize(slice) > 0) RETURN_IF_ERROR(WriteSlice(t, slice));
    for (size_t part = 0; part < kStateParts.size(); ++part) {
      const std::string name = NameOf(spec, part);
      metadata_.tensors[name].shape = spec.rows == 1 ? std::vector<int64_t>{spec.cols}
                                                     : std::vector<int64_t>{spec.rows, spec.cols};
      paths_[name] = PathOf(spec, part);
    }
    Keys path = PathOf(spec, 1);
    path.back() = "step";
    RETURN_IF_ERROR(WriteSmall(about_.optimizer_prefix + spec.name + ".step", std::move(path),
                               {TorchFloats{}}));
    done_ += spec.size();
    const uint64_t bytes_each = sizeof(float) * kStatePartCount;
    if (tell_)
      tell_(static_cast<uint64_t>(done_) * bytes_each, static_cast<uint64_t>(total) * bytes_each);
  }
  for (const auto& [name, value] : {std::pair("iteration", about_.step),
                                    {"samples", about_.samples},
                                    {"tokens", about_.tokens}})
    RETURN_IF_ERROR(WriteSmall(name, {name}, {value}));
  RETURN_IF_ERROR(CloseOutputs());
  return ReplaceFile((fs::path(directory_) / ".metadata").string(),
                     PickleDcpMetadata(metadata_, paths_));
}

}  // namespace

absl::Status ExportDcp(StateSource& source, const AtomTable& table, const DcpExport& about,
                       const std::string& directory, const Progress& tell) {
  if (about.files < 1) return InvalidArgument("{} files; 1 would do", about.files);
  for (const std::string& prefix : {about.model_prefix, about.optimizer_prefix})
    if (!prefix.empty() && prefix.back() != '.')
      return InvalidArgument("prefix \"{}\" does not end in a point; \"{}.\" would do", prefix,
                             prefix);
  RETURN_IF_ERROR(MakeExportDirectory(directory));
  return DcpExporter(source, table, about, directory, tell).Write();
}

}  // namespace perdure
