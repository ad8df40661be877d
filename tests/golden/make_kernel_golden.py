#!/usr/bin/env python3
"""Writes what PyTorch computes for the operations of kernels/ops.h: the values of golden_test.cc.

    python3 tests/golden/make_kernel_golden.py        # needs PyTorch >= 2.5

Inputs are fp32 values; everything but AdamW is computed in float64, so the files hold the true
values, rounded to fp32. AdamW is torch.optim.AdamW in float32, its default path on a CPU.
One file per operation, of tensors:

    name rows cols
    row-major values, a row a line, nine significant digits (each fp32 value comes back exactly)
"""

import pathlib

import torch
import torch.nn.functional as F

HERE = pathlib.Path(__file__).resolve().parent


def inputs(seed, *shape, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float32) * scale
    return x.double().requires_grad_()


def write(op, **tensors):
    with open(HERE / f"kernels_{op}.txt", "w") as file:
        for name, tensor in tensors.items():
            tensor = tensor.detach().float()
            tensor = tensor.reshape(1, -1) if tensor.dim() < 2 else tensor.flatten(0, -2)
            print(name, *tensor.shape, file=file)
            for row in tensor.tolist():
                print(*(f"{value:.9g}" for value in row), file=file)


def rms_norm():
    x, weight, dy = inputs(1, 9, 37), inputs(2, 37), inputs(3, 9, 37)
    eps = 1e-5
    y = F.rms_norm(x, (37,), weight, eps)
    y.backward(dy)
    rstd = (x.square().mean(-1) + eps).rsqrt()
    write("rms_norm", x=x, weight=weight, dy=dy, y=y, rstd=rstd, dx=x.grad, dweight=weight.grad)


def rotate_half(x):
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def rope():
    """As transformers' modeling_llama: batch 2, sequence 7, 3 query heads, 1 key head, dim 8."""
    batch, sequence, heads, dim = 2, 7, 4, 8
    x = inputs(4, batch, sequence, heads, dim)
    frequency = 1.0 / 10000 ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angle = torch.outer(torch.arange(sequence, dtype=torch.float64), frequency)
    cos_half, sin_half = angle.cos().float().double(), angle.sin().float().double()
    cos = torch.cat((cos_half, cos_half), dim=-1)[None, :, None, :]
    sin = torch.cat((sin_half, sin_half), dim=-1)[None, :, None, :]
    y = x * cos + rotate_half(x) * sin
    dy = inputs(5, *y.shape)
    y.backward(dy)
    flat = lambda t: t.detach().reshape(batch * sequence, heads * dim)
    write("rope", cos=cos_half, sin=sin_half, x=flat(x), y=flat(y), dy=flat(dy), dx=flat(x.grad))


def attention():
    """Batch 2, sequence 19, 4 query heads, 2 key/value heads, dimension 8."""
    batch, sequence, q_heads, kv_heads, dim = 2, 19, 4, 2, 8
    qkv = inputs(6, batch, sequence, q_heads + 2 * kv_heads, dim)
    q, k, v = (t.transpose(1, 2) for t in qkv.split((q_heads, kv_heads, kv_heads), dim=2))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    out = out.transpose(1, 2)
    dout = inputs(7, *out.shape)
    out.backward(dout)
    scores = q @ k.repeat_interleave(q_heads // kv_heads, dim=1).transpose(2, 3) / dim**0.5
    hidden = torch.ones(sequence, sequence, dtype=torch.bool).triu(1)
    lse = scores.masked_fill(hidden, float("-inf")).logsumexp(-1)
    flat = lambda t: t.detach().reshape(batch * sequence, -1)
    write("attention", qkv=flat(qkv), out=flat(out), dout=flat(dout), dqkv=flat(qkv.grad),
          lse=lse.reshape(batch * q_heads, sequence))


def swiglu():
    gate_up, dout = inputs(8, 5, 2 * 21, scale=3.0), inputs(9, 5, 21)
    gate, up = gate_up.chunk(2, dim=-1)
    out = F.silu(gate) * up
    out.backward(dout)
    write("swiglu", gate_up=gate_up, out=out, dout=dout, dgate_up=gate_up.grad)


def cross_entropy():
    logits = inputs(10, 11, 53, scale=4.0)
    targets = torch.arange(11) * 5 % 53
    loss = F.cross_entropy(logits, targets, reduction="none")
    (loss.sum() * 0.125).backward()
    write("cross_entropy", logits=logits, targets=targets, loss=loss, dlogits=logits.grad)


def embedding():
    table, tokens = inputs(11, 13, 20), torch.tensor([3, 0, 12, 3, 7, 3, 12])
    out = F.embedding(tokens, table)
    dout = inputs(12, 7, 20)
    out.backward(dout)
    write("embedding", table=table, tokens=tokens, out=out, dout=dout, dtable=table.grad)


def adamw():
    """Six steps with decay, then the state; gradients of very different sizes."""
    param = inputs(13, 75).detach().float().requires_grad_()
    tensors = {"param0": param.detach().clone()}
    optimizer = torch.optim.AdamW([param], lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for step in range(1, 7):
        scale = 10.0 ** torch.linspace(-6, 2, 75)
        param.grad = inputs(100 + step, 75).detach().float() * scale
        tensors[f"gradient{step}"] = param.grad.clone()
        optimizer.step()
        tensors[f"param{step}"] = param.detach().clone()
    state = optimizer.state[param]
    write("adamw", **tensors, exp_avg=state["exp_avg"], exp_avg_sq=state["exp_avg_sq"])


if __name__ == "__main__":
    for op in (rms_norm, rope, attention, swiglu, cross_entropy, embedding, adamw):
        op()
