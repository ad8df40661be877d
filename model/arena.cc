#include "model/arena.h"

#include <string>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr int64_t kPieceAlignment = 16;

class BucketMaker {
 public:
  BucketMaker(const AtomTable& table, Bucket* bucket) : table_(table), bucket_(bucket) {}

  void Add(const std::string& name, int64_t slice) {
    const int64_t tensor = table_.FindTensor(name);
    PERDURE_CHECK(tensor >= 0);
    const int64_t size = table_.tensors()[static_cast<size_t>(tensor)].SliceSize(slice);
    bucket_->pieces.push_back(
        {static_cast<int32_t>(tensor), static_cast<int32_t>(slice), bucket_->size, size});
    const IndexRange atoms = table_.SliceAtoms(tensor, slice);
    for (int64_t a = atoms.first; a < atoms.last; ++a) {
      const Atom& atom = table_.atoms()[static_cast<size_t>(a)];
      bucket_->atoms.push_back({a, bucket_->size + atom.begin, atom.count});
    }
    bucket_->size += (size + kPieceAlignment - 1) / kPieceAlignment * kPieceAlignment;
  }

 private:
  const AtomTable& table_;
  Bucket* bucket_;
};

}  // namespace

std::vector<Bucket> MakeBuckets(const AtomTable& table, const ModelConfig& model,
                                const TensorSlot& slot, std::span<const int64_t> layers) {
  std::vector<Bucket> buckets;
  int64_t offset = 0;
  const int64_t first = slot.first(), last = slot.first() + slot.local();
  for (int64_t layer : layers) {
    Bucket bucket{.layer = layer, .offset = offset, .size = 0, .pieces = {}, .atoms = {}};
    BucketMaker maker(table, &bucket);
    if (layer < 0) {
      for (int64_t s = first; s < last; ++s) maker.Add("model.embed_tokens.weight", s);
    } else if (layer == model.layers) {
      for (int64_t s = first; s < last; ++s) maker.Add("lm_head.weight", s);
      maker.Add("model.norm.weight", 0);
    } else {
      const std::string prefix = fmt::format("model.layers.{}.", layer);
      for (int64_t s = first; s < last; ++s)
        for (const char* name : {"q_proj", "k_proj", "v_proj"})
          maker.Add(prefix + "self_attn." + name + ".weight", s);
      for (int64_t s = first; s < last; ++s) maker.Add(prefix + "self_attn.o_proj.weight", s);
      for (int64_t s = first; s < last; ++s)
        for (const char* name : {"gate_proj", "up_proj"})
          maker.Add(prefix + "mlp." + name + ".weight", s);
      for (int64_t s = first; s < last; ++s) maker.Add(prefix + "mlp.down_proj.weight", s);
      maker.Add(prefix + "input_layernorm.weight", 0);
      maker.Add(prefix + "post_attention_layernorm.weight", 0);
    }
    offset += bucket.size;
    buckets.push_back(std::move(bucket));
  }
  return buckets;
}

}  // namespace perdure
