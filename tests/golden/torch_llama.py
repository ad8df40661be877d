"""A Llama in plain PyTorch, and readers for Perdure's files: the oracle of loss curves and of speed.

Needs numpy and torch; no file of Perdure's is read through Perdure. State comes from a checkpoint by its manifest alone
(docs/formats.md), so the format is checked on the way.
"""

import json
import pathlib

import numpy as np
import torch


def read_checkpoint(directory, part="param"):
    """{tensor name: float32 array [rows, cols]} of one part ("param", "exp_avg", "exp_avg_sq")."""
    directory = pathlib.Path(directory)
    manifest = json.loads((directory / "manifest.json").read_text())
    which = ["param", "exp_avg", "exp_avg_sq"].index(part)
    tensors, pieces = manifest["tensors"], []
    for number, tensor in enumerate(tensors):
        for piece in range(tensor["slices"]):
            rows, cols = slice_shape(tensor, piece)
            for begin in range(0, rows * cols, manifest["atom_elements"]):
                pieces.append((number, piece, begin, min(manifest["atom_elements"], rows * cols - begin)))
    slices = {}
    for entry in manifest["parts"]:
        data = np.memmap(directory / entry["file"], dtype=np.uint8, mode="r")
        at, first = 0, {sum(entry["runs"][:i]) for i in range(len(entry["runs"]))}
        for position, atom in enumerate(entry["atoms"]):
            number, piece, begin, count = pieces[atom]
            if position in first:
                at = -(-at // 2**20) * 2**20
            start = entry["offsets"][which] + at
            values = np.frombuffer(data[start : start + 4 * count].tobytes(), dtype="<f4")
            rows, cols = slice_shape(tensors[number], piece)
            slices.setdefault((number, piece), np.zeros(rows * cols, np.float32))[begin : begin + count] = values
            at += 4 * count
    result = {}
    for number, tensor in enumerate(tensors):
        parts = [slices[number, s].reshape(slice_shape(tensor, s)) for s in range(tensor["slices"])]
        result[tensor["name"]] = np.concatenate(parts, axis=1 if tensor["axis"] == "cols" else 0)
    return result


def slice_shape(tensor, piece):
    rows, cols = tensor["rows"], tensor["cols"]
    extent = rows if tensor["axis"] == "rows" else cols
    each = -(-extent // tensor["slices"])
    width = min(each * (piece + 1), extent) - min(each * piece, extent)
    if tensor["axis"] == "rows":
        return width, cols
    return (rows, width) if tensor["axis"] == "cols" else (rows, cols)


def causal_attention(q, k, v):
    if hasattr(torch.nn.functional, "scaled_dot_product_attention"):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    length = q.shape[-2]  # Before 2.0 it had to be spelled out.
    mask = torch.full((length, length), float("-inf"), dtype=q.dtype).triu(1)
    return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + mask, -1) @ v


class Llama(torch.nn.Module):
    """The Llama 3.1 shape, from a dictionary of Hugging Face names to arrays."""

    def __init__(self, weights, heads, kv_heads, eps=1e-5):
        super().__init__()
        self.names = list(weights)
        self.weights = torch.nn.ParameterList([torch.nn.Parameter(torch.tensor(w)) for w in weights.values()])
        self.index = {name: i for i, name in enumerate(self.names)}
        self.heads, self.kv_heads, self.eps = heads, kv_heads, eps
        self.layers = sum("input_layernorm" in name for name in weights)

    def w(self, name):
        weight = self.weights[self.index[name + ".weight"]]
        return weight[0] if weight.shape[0] == 1 else weight

    def norm(self, x, name):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.w(name)

    def attention(self, x, prefix, cos, sin):
        batch, length, hidden = x.shape

        def split(y, heads):
            return y.view(batch, length, heads, -1).transpose(1, 2)

        q = split(x @ self.w(prefix + "q_proj").T, self.heads)
        k = split(x @ self.w(prefix + "k_proj").T, self.kv_heads)
        v = split(x @ self.w(prefix + "v_proj").T, self.kv_heads)

        def rotate(y):
            half = y.shape[-1] // 2
            a, b = y[..., :half], y[..., half:]
            return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

        q, k = rotate(q), rotate(k)
        repeat = self.heads // self.kv_heads
        if repeat > 1:
            k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        y = causal_attention(q, k, v)
        return y.transpose(1, 2).reshape(batch, length, -1) @ self.w(prefix + "o_proj").T

    def forward(self, tokens, theta):
        x = torch.nn.functional.embedding(tokens, self.w("model.embed_tokens"))
        head_dim = self.w("model.layers.0.self_attn.q_proj").shape[0] // self.heads
        inverse = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angles = torch.arange(tokens.shape[1], dtype=torch.float64)[:, None] * inverse[None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for i in range(self.layers):
            p = f"model.layers.{i}."
            x = x + self.attention(self.norm(x, p + "input_layernorm"), p + "self_attn.", cos, sin)
            y = self.norm(x, p + "post_attention_layernorm")
            gate, up = y @ self.w(p + "mlp.gate_proj").T, y @ self.w(p + "mlp.up_proj").T
            x = x + (torch.nn.functional.silu(gate) * up) @ self.w(p + "mlp.down_proj").T
        return self.norm(x, "model.norm") @ self.w("lm_head").T

    def loss(self, samples, theta, reduction="mean"):
        logits = self(samples[:, :-1], theta)
        return torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), samples[:, 1:].reshape(-1), reduction=reduction
        )

    def optimizer(self, config):
        decay = [w for w in self.weights if w.shape[0] > 1]
        rest = [w for w in self.weights if w.shape[0] == 1]
        return torch.optim.AdamW(
            [{"params": decay, "weight_decay": config["weight_decay"]}, {"params": rest, "weight_decay": 0.0}],
            betas=(config["beta1"], config["beta2"]),
            eps=config["eps"],
        )


def read_steps(prefix):
    """[(step description, int64 tensor [batch, context + 1])] as tests/tools/dump_steps wrote them."""
    steps = json.loads(pathlib.Path(prefix + ".json").read_text())
    tokens, at, result = np.fromfile(prefix + ".i32", dtype=np.int32), 0, []
    for step in steps:
        count = step["batch"] * (step["context"] + 1)
        samples = tokens[at : at + count].reshape(step["batch"], step["context"] + 1)
        result.append((step, torch.tensor(samples.astype(np.int64))))
        at += count
    return result
