"""Training steps of Lucie's shape in PyTorch on one GPU, with what makes PyTorch fast there.

usage: torch_gpu_step.py [--layers L] [--context T] [--micro-batch B] [--accumulate A] [--config bf16,master,deterministic]
                         [--steps N] [--seconds S] [--head auto|plain|chunked] [--eager]

  bf16     weights, gradients and moments in bf16: its fastest. Less exact than Perdure, which keeps fp32 master values,
           fp32 moments and fp32 gradient sums.
  master   fp32 weights, moments and gradient sums with bf16 autocast: like for like. Each micro-batch's weight gradient
           is still rounded to bf16 before it is added; Perdure adds it in fp32.
  deterministic  master, with torch.use_deterministic_algorithms: what Perdure always is.

All: torch.compile of each block and of the loss, the faster of flash and cuDNN attention, fused q|k|v and gate|up
matmuls, the faster of two cross-entropy heads, fused AdamW, clipping of the global norm, random tokens by Zipf's law.
Prints one JSON line for each configuration. --seconds bounds each: compiling first, then steps until they are spent.
"""

import argparse
import contextlib
import gc
import json
import os
import statistics
import sys
import time

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # 32 MiB, Hopper's default; deterministic mode asks for it.

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from gpu_runs import LUCIE, flop_per_token, mfu  # noqa: E402

HEAD_ROWS = 2048  # Rows of logits at a time in the chunked head.


def norm(x, weight):
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype) * weight.to(x.dtype)


def rotate(x, cos, sin):
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


def attend(q, k, v, grouped):
    if not grouped:
        repeat = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)


def matrix(rows, cols, dtype, device):
    return torch.nn.Parameter(torch.empty(rows, cols, dtype=dtype, device=device).normal_(std=0.02))


class Block(torch.nn.Module):
    def __init__(self, m, dtype, device, grouped):
        super().__init__()
        head = m["hidden"] // m["heads"]
        self.widths = [m["heads"] * head, m["kv_heads"] * head, m["kv_heads"] * head]
        self.head, self.grouped = head, grouped
        self.norm1 = torch.nn.Parameter(torch.ones(m["hidden"], dtype=dtype, device=device))
        self.norm2 = torch.nn.Parameter(torch.ones(m["hidden"], dtype=dtype, device=device))
        self.qkv = matrix(sum(self.widths), m["hidden"], dtype, device)
        self.o = matrix(m["hidden"], self.widths[0], dtype, device)
        self.gate_up = matrix(2 * m["ffn"], m["hidden"], dtype, device)
        self.down = matrix(m["hidden"], m["ffn"], dtype, device)

    def forward(self, x, cos, sin):
        batch, length, hidden = x.shape
        parts = F.linear(norm(x, self.norm1), self.qkv).split(self.widths, -1)
        q, k, v = (part.view(batch, length, -1, self.head).transpose(1, 2) for part in parts)
        y = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, self.grouped)
        x = x + F.linear(y.transpose(1, 2).reshape(batch, length, -1), self.o)
        gate, up = F.linear(norm(x, self.norm2), self.gate_up).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, self.down)


def plain_head(x, weight, targets, scale):
    return F.cross_entropy(F.linear(x, weight).float(), targets, reduction="sum") * scale


def chunk_loss(logits, targets, scale):
    """The loss of some rows, and the gradient of their logits."""
    wide = logits.float()
    total = torch.logsumexp(wide, -1, keepdim=True)
    loss = (total - wide.gather(1, targets[:, None])).sum() * scale
    hit = torch.arange(wide.shape[1], device=wide.device)[None] == targets[:, None]
    return loss, ((torch.exp(wide - total) - hit.float()) * scale).to(logits.dtype)


class ChunkedHead(torch.autograd.Function):
    """Head and loss without whole logits: gradients are made in the forward pass, of a loss that is the last thing."""

    @staticmethod
    def forward(ctx, x, weight, targets, scale, loss_of):
        w = weight.to(x.dtype)
        dx, dw, loss = torch.empty_like(x), torch.zeros_like(weight), 0
        for rows, to, out in zip(x.split(HEAD_ROWS), targets.split(HEAD_ROWS), dx.split(HEAD_ROWS), strict=True):
            part, dlogits = loss_of(rows @ w.T, to, scale)
            loss = loss + part
            torch.mm(dlogits, w, out=out)
            if dw.dtype == x.dtype:
                dw.addmm_(dlogits.T, rows)
            else:
                dw += dlogits.T @ rows
        ctx.save_for_backward(dx, dw)
        return loss

    @staticmethod
    def backward(ctx, _):
        return *ctx.saved_tensors, None, None, None


class Model(torch.nn.Module):
    def __init__(self, layers, dtype, device, grouped):
        super().__init__()
        self.embedding = matrix(LUCIE["vocab"], LUCIE["hidden"], dtype, device)
        self.blocks = torch.nn.ModuleList(Block(LUCIE, dtype, device, grouped) for _ in range(layers))
        self.norm = torch.nn.Parameter(torch.ones(LUCIE["hidden"], dtype=dtype, device=device))
        self.head = matrix(LUCIE["vocab"], LUCIE["hidden"], dtype, device)

    def compile_parts(self, eager):
        wrap = (lambda f: f) if eager else torch.compile
        for block in self.blocks if not eager else ():
            block.compile()
        self.last_norm, self.plain, self.chunk = wrap(norm), wrap(plain_head), wrap(chunk_loss)

    def head_loss(self, x, targets, scale, chunked):
        if chunked:
            return ChunkedHead.apply(x, self.head, targets, scale, self.chunk)
        return self.plain(x, self.head, targets, scale)

    def loss(self, tokens, targets, cos, sin, scale, chunked):
        x = F.embedding(tokens, self.embedding).to(torch.bfloat16)
        for block in self.blocks:
            x = block(x, cos, sin)
        x = self.last_norm(x, self.norm)
        return self.head_loss(x.view(-1, x.shape[-1]), targets.view(-1), scale, chunked)


class Device:
    """The GPU, or the CPU for a dry run."""

    def __init__(self):
        self.name = "cuda" if torch.cuda.is_available() else "cpu"

    def sync(self):
        if self.name == "cuda":
            torch.cuda.synchronize()

    def seconds(self, run, count):
        run()
        self.sync()
        began = time.perf_counter()
        for _ in range(count):
            run()
        self.sync()
        return (time.perf_counter() - began) / count

    def peak(self):
        return torch.cuda.max_memory_allocated() if self.name == "cuda" else 0

    def empty(self):
        gc.collect()
        if self.name == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def allow_only(backend):
    """For every later call, compiled or not. The slow ones stay off: they would need the whole square."""
    torch.backends.cuda.enable_flash_sdp(backend == "flash")
    torch.backends.cuda.enable_cudnn_sdp(backend == "cudnn")
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_math_sdp(False)


def attention_seconds(device, a):
    """{"BACKEND grouped" or "BACKEND repeated" key and value heads: seconds forward and backward}, the fastest first."""
    if device.name == "cpu":
        return {"cpu grouped": 0.0}
    head, times = LUCIE["hidden"] // LUCIE["heads"], {}

    def random_heads(heads):
        shape = (a.micro_batch, a.context, heads, head)
        return torch.randn(shape, device="cuda", dtype=torch.bfloat16).transpose(1, 2).requires_grad_()

    q, k, v = (random_heads(LUCIE[key]) for key in ("heads", "kv_heads", "kv_heads"))
    out = torch.randn_like(q)
    for backend in ("flash", "cudnn"):
        for grouped in (True, False):
            allow_only(backend)
            name = f"{backend} {'grouped' if grouped else 'repeated'}"
            with contextlib.suppress(RuntimeError):  # This one does not take the shape.
                times[name] = device.seconds(lambda g=grouped: attend(q, k, v, g).backward(out), 5)
    return dict(sorted(times.items(), key=lambda item: item[1]))


def choose_head(device, model, a, autocast, scale):
    if a.head != "auto":
        return a.head == "chunked", {}
    rows = a.micro_batch * a.context
    x = torch.randn(rows, LUCIE["hidden"], device=device.name, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(0, LUCIE["vocab"], (rows,), device=device.name)
    times = {}
    for name, chunked in (("plain", False), ("chunked", True)):

        def run(chunked=chunked):
            with autocast():
                loss = model.head_loss(x, targets, scale, chunked)
            loss.backward()

        try:
            times[name] = device.seconds(run, 3)
        except torch.OutOfMemoryError:
            pass
        model.zero_grad(set_to_none=True)
        x.grad = None
        device.empty()
    return min(times, key=times.get) == "chunked", times


def measure(device, a, config, attention):
    began = time.perf_counter()
    torch.manual_seed(1)
    backend, heads = attention.split()
    if backend != "cpu":
        allow_only(backend)
    master = config != "bf16"
    # As ours always is: sums in a fixed order, attention's backward pass among them.
    torch.use_deterministic_algorithms(config == "deterministic", warn_only=True)
    model = Model(a.layers, torch.float32 if master else torch.bfloat16, device.name, heads == "grouped")
    model.compile_parts(a.eager)

    def autocast():
        return torch.autocast(device.name, torch.bfloat16, enabled=master)

    scale = 1 / (a.accumulate * a.micro_batch * a.context)  # Of a token. A constant of compiled code, so always the same.
    chunked, head_times = choose_head(device, model, a, autocast, scale)
    decay = [w for w in model.parameters() if w.dim() > 1]
    rest = [w for w in model.parameters() if w.dim() == 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), eps=1e-5, fused=True)
    zipf = 1 / (torch.arange(LUCIE["vocab"], device=device.name) + 3.0)
    samples = torch.multinomial(zipf, a.accumulate * a.micro_batch * (a.context + 1), replacement=True)
    samples = samples.view(a.accumulate, a.micro_batch, a.context + 1)
    half = LUCIE["hidden"] // LUCIE["heads"] // 2
    angles = torch.arange(a.context)[:, None] * 5e5 ** (-torch.arange(half, dtype=torch.float64) / half)
    cos, sin = (t.float().to(device.name) for t in (angles.cos(), angles.sin()))
    steps, loss = [], 0.0
    while len(steps) < a.steps and (len(steps) < 3 or time.perf_counter() - began < a.seconds):
        device.sync()
        step_began = time.perf_counter()
        loss = 0
        for part in samples:
            with autocast():
                part_loss = model.loss(part[:, :-1], part[:, 1:].contiguous(), cos, sin, scale, chunked)
            part_loss.backward()
            loss = loss + part_loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        device.sync()
        steps.append(time.perf_counter() - step_began)
    seconds = statistics.median(steps[2:] or steps)
    rate = a.accumulate * a.micro_batch * a.context / seconds
    causal, square = mfu(rate, a.layers, a.context)
    return {
        "config": config,
        "layers": a.layers,
        "context": a.context,
        "micro_batch": a.micro_batch,
        "accumulate": a.accumulate,
        "tokens_per_second": rate,
        "tflops": rate * flop_per_token(a.layers, a.context) / 1e12,
        "mfu_causal": causal,
        "mfu_non_causal": square,
        "step_seconds": seconds,
        "steps": len(steps),
        "first_step_seconds": steps[0],
        "loss": float(loss),
        "peak_bytes": device.peak(),
        "attention": attention,
        "head": "chunked" if chunked else "plain",
        "head_seconds": head_times,
        "compiled": not a.eager,
        "version": torch.__version__,
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--micro-batch", type=int, default=2)
    parser.add_argument("--accumulate", type=int, default=8, help="micro-batches of a step")
    parser.add_argument("--config", default="bf16,master,deterministic")
    parser.add_argument("--steps", type=int, default=8, help="the most of them; the first two warm up")
    parser.add_argument("--seconds", type=float, default=60, help="of one configuration")
    parser.add_argument("--head", choices=["auto", "plain", "chunked"], default="auto")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--shape", type=json.loads, default={}, help="JSON over Lucie's shape, for a dry run")
    a = parser.parse_args()
    LUCIE.update(a.shape)
    torch.set_float32_matmul_precision("high")
    device, failed = Device(), False
    attention = attention_seconds(device, a)
    for config in a.config.split(","):
        report = {"config": config, "error": "no attention kernel takes this shape"}
        # What is fast alone may not compile, or not fit: then the next one.
        for name in list(attention)[:3]:
            try:
                report = {**measure(device, a, config, name), "attention_seconds": attention}
                break
            except Exception as error:
                report = {"config": config, "error": f"{type(error).__name__}: {str(error)[:300]}"}
                print(f"{config}, attention {name}: {report['error']}", file=sys.stderr)
                memory = isinstance(error, torch.OutOfMemoryError)
            torch.compiler.reset()
            device.empty()
            if memory:
                break
        failed = failed or "error" in report
        print(json.dumps(report), flush=True)
        torch.compiler.reset()
        device.empty()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
