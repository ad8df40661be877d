"""A small Llama's training state, by Hugging Face names, and its Megatron form. Shared by the scripts here."""
import zlib

import numpy
import torch

PARTS = ["param", "exp_avg", "exp_avg_sq"]


class Model:
    def __init__(self, layers):
        self.layers, self.hidden, self.heads, self.kv_heads, self.head_dim = layers, 8, 8, 4, 2
        self.ffn, self.vocab = 12, 18

    def tensors(self):
        """Name -> shape, in the order of Perdure's tables."""
        q, kv, h = self.heads * self.head_dim, self.kv_heads * self.head_dim, self.hidden
        shapes = {"model.embed_tokens.weight": (self.vocab, h)}
        for i in range(self.layers):
            p = f"model.layers.{i}."
            shapes |= {p + "input_layernorm.weight": (h,), p + "self_attn.q_proj.weight": (q, h),
                       p + "self_attn.k_proj.weight": (kv, h), p + "self_attn.v_proj.weight": (kv, h),
                       p + "self_attn.o_proj.weight": (h, q), p + "post_attention_layernorm.weight": (h,),
                       p + "mlp.gate_proj.weight": (self.ffn, h), p + "mlp.up_proj.weight": (self.ffn, h),
                       p + "mlp.down_proj.weight": (h, self.ffn)}
        return shapes | {"model.norm.weight": (h,), "lm_head.weight": (self.vocab, h)}


def make_state(model, seed):
    """Name -> three tensors. Some values are zeros with a sign and denormals."""
    random = numpy.random.default_rng(seed)
    state = {}
    for name, shape in model.tensors().items():
        parts = []
        for _ in PARTS:
            values = random.standard_normal(shape, dtype=numpy.float32)
            values.reshape(-1)[:2] = [-0.0, 1e-41]
            parts.append(torch.from_numpy(values))
        state[name] = parts
    return state


def golden_lines(label, state, parts=3):
    """label, name, part, CRC-32 of its fp32 bytes in row-major order."""
    for name, tensors in state.items():
        for part, tensor in list(zip(PARTS, tensors))[:parts]:
            crc = zlib.crc32(tensor.float().contiguous().numpy().tobytes())
            yield f"{label} {name} {part} {crc:08x}\n"


def megatron_slices(model, state, part, ranks, padded_vocab):
    """Megatron name -> one tensor for each tensor rank."""
    random = numpy.random.default_rng(99)

    def vocabulary(tensor):
        padding = torch.from_numpy(random.standard_normal((padded_vocab - model.vocab, model.hidden), dtype=numpy.float32))
        return torch.cat([tensor, padding]).chunk(ranks)

    def at(name):
        return state[name][part]

    slices = {"1.word_embeddings.weight": vocabulary(at("model.embed_tokens.weight"))}
    for i in range(model.layers):
        hf, mega = f"model.layers.{i}.", f"{i + 2}."
        kv_shape = (model.kv_heads, model.head_dim, model.hidden)
        key_value = torch.stack([at(hf + "self_attn.k_proj.weight").view(kv_shape),
                                 at(hf + "self_attn.v_proj.weight").view(kv_shape)], dim=1)
        gate = at(hf + "mlp.gate_proj.weight").chunk(ranks)
        up = at(hf + "mlp.up_proj.weight").chunk(ranks)
        slices |= {
            mega + "input_layernorm.weight": [at(hf + "input_layernorm.weight")] * ranks,
            mega + "self_attention.query.weight": at(hf + "self_attn.q_proj.weight").chunk(ranks),
            mega + "self_attention.key_value.weight": key_value.reshape(-1, model.hidden).chunk(ranks),
            mega + "self_attention.dense.weight": at(hf + "self_attn.o_proj.weight").chunk(ranks, dim=1),
            mega + "post_attention_layernorm.weight": [at(hf + "post_attention_layernorm.weight")] * ranks,
            mega + "mlp.dense_h_to_4h.weight": [torch.cat([g, u]) for g, u in zip(gate, up)],
            mega + "mlp.dense_4h_to_h.weight": at(hf + "mlp.down_proj.weight").chunk(ranks, dim=1)}
    slices[f"{model.layers + 2}.weight"] = [at("model.norm.weight")] * ranks
    slices[f"{model.layers + 3}.lm_head.weight"] = vocabulary(at("lm_head.weight"))
    return slices
