"""A small Llama's training state, by Hugging Face names, and its Megatron form. Shared by the scripts here."""
import zlib

import numpy
import torch

PARTS = ["param", "exp_avg", "exp_avg_sq"]


class Model:
    def __init__(self, layers, hidden=8, heads=8, kv_heads=4, head_dim=2, ffn=12, vocab=18):
        self.layers, self.hidden, self.heads, self.kv_heads, self.head_dim = layers, hidden, heads, kv_heads, head_dim
        self.ffn, self.vocab = ffn, vocab

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


def make_training_state(model, seed):
    """As make_state, of sizes that training goes on from."""
    state = make_state(model, seed)
    for name, parts in state.items():
        parts[0] = parts[0] * 0.05 + (1 if parts[0].dim() == 1 else 0)
        parts[1:] = [parts[1] * 1e-3, (parts[2] * 1e-3) ** 2]
    return state


def golden_lines(label, state, parts=3):
    """label, name, part, CRC-32 of its fp32 bytes in row-major order."""
    for name, tensors in state.items():
        for part, tensor in list(zip(PARTS, tensors))[:parts]:
            crc = zlib.crc32(tensor.float().contiguous().numpy().tobytes())
            yield f"{label} {name} {part} {crc:08x}\n"


def vocabulary_slices(model, tensor, ranks, padded_vocab, which):
    """Rows behind the vocabulary are noise, other noise for the head (`which` 1) than for the embedding (0)."""
    random = numpy.random.default_rng(99)
    shape = (padded_vocab - model.vocab, model.hidden)
    padding = [random.standard_normal(shape, dtype=numpy.float32) for _ in range(which + 1)][which]
    return torch.cat([tensor, torch.from_numpy(padding)]).chunk(ranks)


def megatron_layer(model, state, part, ranks, padded_vocab, layer):
    """Megatron name -> one tensor for each tensor rank. Layer 1 is the embedding, the blocks begin at 2, then norm, head."""
    if layer == 1:
        return {"1.word_embeddings.weight": vocabulary_slices(model, state["model.embed_tokens.weight"][part], ranks,
                                                              padded_vocab, 0)}
    if layer == model.layers + 2:
        return {f"{layer}.weight": [state["model.norm.weight"][part]] * ranks}
    if layer == model.layers + 3:
        return {f"{layer}.lm_head.weight": vocabulary_slices(model, state["lm_head.weight"][part], ranks, padded_vocab, 1)}
    hf, mega = f"model.layers.{layer - 2}.", f"{layer}."

    def at(name):
        return state[hf + name + ".weight"][part]

    kv_shape = (model.kv_heads, model.head_dim, model.hidden)
    key_value = torch.stack([at("self_attn.k_proj").view(kv_shape), at("self_attn.v_proj").view(kv_shape)], dim=1)
    gate, up = at("mlp.gate_proj").chunk(ranks), at("mlp.up_proj").chunk(ranks)
    return {
        mega + "input_layernorm.weight": [at("input_layernorm")] * ranks,
        mega + "self_attention.query.weight": at("self_attn.q_proj").chunk(ranks),
        mega + "self_attention.key_value.weight": key_value.reshape(-1, model.hidden).chunk(ranks),
        mega + "self_attention.dense.weight": at("self_attn.o_proj").chunk(ranks, dim=1),
        mega + "post_attention_layernorm.weight": [at("post_attention_layernorm")] * ranks,
        mega + "mlp.dense_h_to_4h.weight": [torch.cat([g, u]) for g, u in zip(gate, up)],
        mega + "mlp.dense_4h_to_h.weight": at("mlp.down_proj").chunk(ranks, dim=1)}


def megatron_slices(model, state, part, ranks, padded_vocab):
    """All layers."""
    slices = {}
    for layer in range(1, model.layers + 4):
        slices |= megatron_layer(model, state, part, ranks, padded_vocab, layer)
    return slices
