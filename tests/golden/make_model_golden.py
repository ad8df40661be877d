#!/usr/bin/env python3
"""Writes what transformers computes for a whole Llama: tests/golden/model_llama.txt, which
tests/model/llama_golden_test.cc compares model/ with.

    python3 tests/golden/make_model_golden.py      # needs PyTorch and transformers

Weights and tokens are closed formulas (Value and Token of tests/model/model_run.h), exact in fp32;
the model runs in float64. Query heads are not hidden / head_dim on purpose. The file:

    loss VALUE                     mean over the tokens
    tensor NAME COUNT SUM NORM     of the loss's gradient, in Hugging Face's layout
    INDEX VALUE                    about 40 of its elements
"""

import pathlib

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

HERE = pathlib.Path(__file__).resolve().parent
LAYERS, VOCAB, SAMPLES, CONTEXT = 3, 101, 2, 24
TOKEN_STREAM = 1000
SAMPLED = 40


def mix(stream, element):
    """The finaliser of a 32-bit hash ("lowbias32"), on uint32 in int64."""
    h = (stream * 0x9E3779B1 + element * 0x85EBCA6B + 1) & 0xFFFFFFFF
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        h = ((h ^ (h >> shift)) * factor) & 0xFFFFFFFF
    return h


def value(tensor_index, element):
    """A multiple of 2^-20 in [-0.25, 0.25)."""
    return (mix(tensor_index, element) % (1 << 19) - (1 << 18)) / (1 << 20)


def tensor_names():
    block = ["input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
             "self_attn.o_proj", "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj",
             "mlp.down_proj"]
    return (["model.embed_tokens.weight"]
            + [f"model.layers.{i}.{name}.weight" for i in range(LAYERS) for name in block]
            + ["model.norm.weight", "lm_head.weight"])


def main():
    model = LlamaForCausalLM(LlamaConfig(
        hidden_size=64, num_attention_heads=8, num_key_value_heads=4, head_dim=16,
        intermediate_size=96, num_hidden_layers=LAYERS, vocab_size=VOCAB, rms_norm_eps=1e-5,
        rope_theta=500000.0, max_position_embeddings=64, tie_word_embeddings=False,
        attention_bias=False, mlp_bias=False, attn_implementation="eager", use_cache=False))
    model = model.double().eval()
    parameters = dict(model.named_parameters())
    names = tensor_names()
    assert sorted(parameters) == sorted(names), sorted(set(parameters) ^ set(names))
    with torch.no_grad():
        for t, name in enumerate(names):
            parameter = parameters[name]
            base = 1.0 if name.endswith("norm.weight") else 0.0
            values = [base + value(t, i) for i in range(parameter.numel())]
            parameter.copy_(torch.tensor(values, dtype=torch.float64).view_as(parameter))
    tokens = torch.tensor([mix(TOKEN_STREAM, i) % VOCAB for i in range(SAMPLES * (CONTEXT + 1))])
    tokens = tokens.view(SAMPLES, CONTEXT + 1)
    logits = model(tokens[:, :-1]).logits
    assert logits.dtype == torch.float64
    loss = F.cross_entropy(logits.reshape(-1, VOCAB), tokens[:, 1:].reshape(-1))
    loss.backward()
    with open(HERE / "model_llama.txt", "w") as file:
        print(f"loss {loss.item():.15e}", file=file)
        for t, name in enumerate(names):
            gradient = parameters[name].grad.flatten()
            count = gradient.numel()
            print(f"tensor {name} {count} {gradient.sum().item():.9e} {gradient.norm().item():.9e}",
                  file=file)
            for j in range(SAMPLED):
                index = mix(2000 + t, j) % count
                print(f"{index} {gradient[index].item():.9e}", file=file)


if __name__ == "__main__":
    main()
