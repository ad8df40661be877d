#include "ckpt/convert/zero_partition.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "ckpt/convert/pickle_view.h"
#include "ckpt/convert/torch_file.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// Megatron has two; a file with very many is none of its.
constexpr size_t kGroupsMax = 64;

// Flat tensors of one parameter group.
struct Group {
  std::array<std::shared_ptr<FloatSource>, kStatePartCount> sources;
  int64_t size = 0;  // Of the moments, padding included.
};

absl::StatusOr<std::shared_ptr<FloatSource>> FlatTensor(const TorchFile& file,
                                                        const PickleView& value, FileCache& files) {
  ASSIGN_OR_RETURN(TorchTensor tensor, file.Tensor(value));
  if (tensor.shape.size() != 1) return value.Unexpected("a flat tensor was expected");
  if (tensor.type != TorchType::kFloat32)
    return InvalidArgument("{} is of {}: optimizer state is read in float32", value.where(),
                           TorchTypeName(tensor.type));
  return std::make_shared<TensorSource>(files, file.file().path(), std::move(tensor));
}

absl::Status AgreeOnStep(const TorchFile& file, const PickleView& dict, int64_t& step) {
  ASSIGN_OR_RETURN(const std::optional<PickleView> found, dict.Find("step"));
  if (!found.has_value()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const int64_t value, file.Integer(*found));
  if (step < 0 && value >= 0) step = value;
  if (value == step) return absl::OkStatus();
  return DataLoss("{} = {} where other groups or files have {}: files of different steps?",
                  found->where(), value, step);
}

class PartitionReader {
 public:
  PartitionReader(const TorchFile& file, FileCache& files, int64_t data_rank, int64_t data_ranks)
      : file_(file), files_(files), data_rank_(data_rank), data_ranks_(data_ranks) {}

  absl::Status Read(ZeroFragments& fragments, ZeroProgress& progress);

 private:
  absl::Status CheckStage(const PickleView& optimizer) const;
  absl::Status CheckPartitionCount(const PickleView& optimizer) const;
  absl::StatusOr<Group> ReadGroup(const PickleView& optimizer, size_t index, int64_t& step) const;
  absl::Status ReadFragments(const PickleView& mapping, const Group& group,
                             ZeroFragments& fragments) const;

  const TorchFile& file_;
  FileCache& files_;
  int64_t data_rank_, data_ranks_;
};

// Absent: the bf16 optimizer. An enum, or an int.
absl::Status PartitionReader::CheckStage(const PickleView& optimizer) const {
  ASSIGN_OR_RETURN(const std::optional<PickleView> found, optimizer.Find("zero_stage"));
  if (!found.has_value()) return absl::OkStatus();
  PickleView value = *found;
  if (value.Is(PickleKind::kCall)) {
    if (value.value().callee->name != "ZeroStageEnum" || value.value().args->items.size() != 1)
      return value.Unexpected("a ZeRO stage was expected");
    value = PickleView(*value.value().args->items[0], value.where());
  }
  ASSIGN_OR_RETURN(const int64_t stage, value.Int());
  if (stage >= 0 && stage <= 2) return absl::OkStatus();
  return InvalidArgument(
      "{} = {}: 1 and 2 are read; convert the checkpoint with DeepSpeed's ds_to_universal",
      found->where(), stage);
}

absl::Status PartitionReader::CheckPartitionCount(const PickleView& optimizer) const {
  ASSIGN_OR_RETURN(const std::optional<PickleView> found, optimizer.Find("partition_count"));
  if (!found.has_value()) return absl::OkStatus();
  std::vector<int64_t> counts;
  if (found->Is(PickleKind::kInt)) {
    counts.push_back(found->value().integer);
  } else {
    ASSIGN_OR_RETURN(counts, found->Ints());
  }
  for (const int64_t count : counts)
    if (count != data_ranks_)
      return DataLoss(
          "{} has {}, and there are files of {} data ranks: some are missing or too many",
          found->where(), count, data_ranks_);
  return absl::OkStatus();
}

absl::StatusOr<Group> PartitionReader::ReadGroup(const PickleView& optimizer, size_t index,
                                                 int64_t& step) const {
  ASSIGN_OR_RETURN(const PickleView base, optimizer.Get("base_optimizer_state"));
  ASSIGN_OR_RETURN(const PickleView states, base.Get("state"));
  ASSIGN_OR_RETURN(const PickleView state, states.Get(static_cast<int64_t>(index)));
  ASSIGN_OR_RETURN(const PickleView values, optimizer.Get("single_partition_of_fp32_groups"));
  ASSIGN_OR_RETURN(const std::vector<PickleView> groups, values.Items());
  ASSIGN_OR_RETURN(const PickleView paddings, optimizer.Get("group_paddings"));
  ASSIGN_OR_RETURN(const std::vector<int64_t> padding, paddings.Ints());
  if (groups.size() <= index || padding.size() <= index)
    return DataLoss("{} and {} have {} and {} groups; group {} is mapped", values.where(),
                    paddings.where(), groups.size(), padding.size(), index);
  Group group;
  ASSIGN_OR_RETURN(group.sources[0], FlatTensor(file_, groups[index], files_));
  for (size_t part = 1; part < kStateParts.size(); ++part) {
    ASSIGN_OR_RETURN(const PickleView moment, state.Get(kStateParts[part]));
    ASSIGN_OR_RETURN(group.sources[part], FlatTensor(file_, moment, files_));
  }
  group.size = group.sources[1]->size();
  const int64_t own = group.sources[0]->size(), pad = padding[index];
  // ZeRO 1 and 2 cut the padding off the values, the bf16 optimizer does not.
  if (group.sources[2]->size() != group.size || pad < 0 || pad > group.size ||
      (own != group.size && own != group.size - pad))
    return DataLoss("{}: group {} has {} values, moments of {} and {}, and padding {}",
                    optimizer.where(), index, own, group.size, group.sources[2]->size(), pad);
  RETURN_IF_ERROR(AgreeOnStep(file_, state, step));
  return group;
}

absl::Status PartitionReader::ReadFragments(const PickleView& mapping, const Group& group,
                                            ZeroFragments& fragments) const {
  ASSIGN_OR_RETURN(const std::vector<PickleView::Pair> pairs, mapping.Pairs());
  std::vector<std::pair<int64_t, int64_t>> taken;
  for (const auto& [key, address] : pairs) {
    ASSIGN_OR_RETURN(const std::string name, key.String());
    const PickleValue& object = address.value();
    if (object.kind != PickleKind::kObject || object.callee->name != "fragment_address" ||
        !object.callee->text.starts_with("deepspeed.") || object.state == nullptr)
      return address.Unexpected("a fragment_address was expected");
    const PickleView fields(*object.state, address.where());
    ASSIGN_OR_RETURN(const PickleView start, fields.Get("start"));
    ASSIGN_OR_RETURN(const PickleView numel, fields.Get("numel"));
    ASSIGN_OR_RETURN(const int64_t first, start.Int());
    ASSIGN_OR_RETURN(const int64_t count, numel.Int());
    if (first < 0 || count <= 0 || first > group.sources[0]->size() ||
        count > group.sources[0]->size() - first)
      return DataLoss("{}: elements {} to {} of a partition of {}", address.where(), first,
                      first + count, group.sources[0]->size());
    taken.emplace_back(first, count);
    std::vector<ZeroFragment>& list = fragments[name];
    if (!list.empty() && list.back().data_rank == data_rank_)
      return DataLoss("{}: it is mapped twice on one data rank", address.where());
    list.push_back({.data_rank = data_rank_,
                    .sources = group.sources,
                    .first = first,
                    .count = count,
                    .at_begin = first == 0,
                    .at_end = first + count == group.size});
  }
  std::sort(taken.begin(), taken.end());
  for (size_t i = 1; i < taken.size(); ++i)
    if (taken[i].first < taken[i - 1].first + taken[i - 1].second)
      return DataLoss("{}: two parameters share element {} of the partition", mapping.where(),
                      taken[i].first);
  return absl::OkStatus();
}

absl::Status PartitionReader::Read(ZeroFragments& fragments, ZeroProgress& progress) {
  ASSIGN_OR_RETURN(const PickleView optimizer, file_.root().Get("optimizer_state_dict"));
  RETURN_IF_ERROR(CheckStage(optimizer));
  ASSIGN_OR_RETURN(const std::optional<PickleView> mappings,
                   optimizer.Find("param_slice_mappings"));
  if (!mappings.has_value())
    return InvalidArgument(
        "{} has no param_slice_mappings, so nothing says where a parameter stands: ZeRO 3, or a "
        "DeepSpeed before 0.8; load and save the checkpoint with a newer one",
        optimizer.where());
  RETURN_IF_ERROR(CheckPartitionCount(optimizer));
  ASSIGN_OR_RETURN(const std::vector<PickleView> groups, mappings->Items());
  if (groups.size() > kGroupsMax)
    return mappings->Unexpected(fmt::format("at most {} groups are read", kGroupsMax));
  for (size_t g = 0; g < groups.size(); ++g) {
    ASSIGN_OR_RETURN(const Group group, ReadGroup(optimizer, g, progress.step));
    RETURN_IF_ERROR(ReadFragments(groups[g], group, fragments));
  }
  // FusedAdam counts steps in its groups instead.
  ASSIGN_OR_RETURN(const PickleView base, optimizer.Get("base_optimizer_state"));
  ASSIGN_OR_RETURN(const PickleView params, base.Get("param_groups"));
  ASSIGN_OR_RETURN(const std::vector<PickleView> param_groups, params.Items());
  for (const PickleView& group : param_groups) {
    RETURN_IF_ERROR(AgreeOnStep(file_, group, progress.step));
    ASSIGN_OR_RETURN(const std::optional<PickleView> rate, group.Find("lr"));
    if (progress.rate < 0 && rate.has_value()) {
      ASSIGN_OR_RETURN(progress.rate, rate->Number());
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadZeroPartition(const std::string& path, int64_t data_rank, int64_t data_ranks,
                               FileCache& files, ZeroFragments& fragments, ZeroProgress& progress) {
  ASSIGN_OR_RETURN(const TorchFile file, TorchFile::Open(path));
  return PartitionReader(file, files, data_rank, data_ranks).Read(fragments, progress);
}

absl::StatusOr<std::array<std::shared_ptr<FloatSource>, kStatePartCount>> JoinFragments(
    const std::vector<ZeroFragment>& fragments, const std::string& where) {
  std::array<std::shared_ptr<ChainSource>, kStatePartCount> chains;
  for (auto& chain : chains) chain = std::make_shared<ChainSource>();
  for (size_t i = 0; i < fragments.size(); ++i) {
    const ZeroFragment& fragment = fragments[i];
    // A parameter that goes on on the next data rank fills the one and begins the other.
    if (i > 0 && (fragment.data_rank != fragments[i - 1].data_rank + 1 || !fragment.at_begin ||
                  !fragments[i - 1].at_end))
      return DataLoss(
          "{}: its pieces on data ranks {} and {} do not join: the mappings contradict each other",
          where, fragments[i - 1].data_rank, fragment.data_rank);
    for (size_t part = 0; part < chains.size(); ++part)
      chains[part]->Add(fragment.sources[part], fragment.first, fragment.count);
  }
  return std::array<std::shared_ptr<FloatSource>, kStatePartCount>{chains[0], chains[1], chains[2]};
}

}  // namespace perdure
