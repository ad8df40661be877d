#!/usr/bin/env python3
"""Checks the exchange with Hugging Face against transformers and safetensors themselves.

    python3 -m venv /tmp/v && /tmp/v/bin/pip install torch transformers safetensors
    /tmp/v/bin/python tests/convert/huggingface_oracle.py build/tests/model_exchange

Small random LlamaForCausalLM are saved by transformers and imported; the checkpoint is exported, loaded by transformers
and compared: tensors by bits, logits with the original model's, losses with those of Perdure's own forward pass.

Exit codes: 0 all agree, 1 a difference, 77 a package is missing (a skip for CTest).
"""
import copy
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
try:
    import safetensors.torch
    import torch
    import transformers
    from transformers import LlamaConfig, LlamaForCausalLM
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

# Relative; what fp32 leaves of a mean over hundreds of tokens, each a sum of hundreds of products.
LOSS_TOLERANCE = 2e-7
BF16_LOSS_TOLERANCE = 2e-2

# Query heads are not hidden / head_dim in the first; slices of the vocabulary are uneven in all.
MODELS = {
    "grouped": dict(hidden_size=64, num_attention_heads=8, num_key_value_heads=4, head_dim=16, intermediate_size=96,
                    num_hidden_layers=3, vocab_size=101, rms_norm_eps=1e-5, rope_theta=500000.0),
    "plain": dict(hidden_size=128, num_attention_heads=4, intermediate_size=160, num_hidden_layers=2, vocab_size=259,
                  rms_norm_eps=1e-6, rope_theta=10000.0),
}
CONTEXT = 64


class Checker:
    def __init__(self, tool, folder):
        self.tool, self.folder, self.failures = tool, pathlib.Path(folder), 0

    def check(self, what, good, details=""):
        print(("ok     " if good else "FAILED ") + what + (f": {details}" if details else ""))
        self.failures += not good

    def run(self, *arguments):
        done = subprocess.run([self.tool, *map(str, arguments)], capture_output=True, text=True)
        if done.returncode:
            self.check(" ".join(map(str, arguments)), False, done.stderr.strip())
        return done.stdout.strip()

    def refused(self, what, words, *arguments):
        done = subprocess.run([self.tool, *map(str, arguments)], capture_output=True, text=True)
        self.check(f"refused: {what}", done.returncode == 1 and words in done.stderr, done.stderr.strip()[:300])


def make_model(shape, dtype=torch.float32, **more):
    """In float32, with weights that `dtype` can hold."""
    torch.manual_seed(7)
    config = LlamaConfig(max_position_embeddings=CONTEXT, tie_word_embeddings=more.pop("tie", False), **shape, **more)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():  # Norm weights begin as ones, which hides what forgets them.
        for parameter in model.parameters():
            value = torch.randn_like(parameter) * 0.08 + (1.0 if parameter.dim() == 1 else 0.0)
            parameter.copy_(value.to(dtype))
    return model


def save(model, directory, dtype, max_shard):
    # A copy: the table of rotary frequencies is rounded as well, and does not come back.
    copy.deepcopy(model).to(dtype).save_pretrained(directory, max_shard_size=max_shard)


def weights_of(directory):
    weights = {}
    for path in sorted(pathlib.Path(directory).glob("*.safetensors")):
        weights.update(safetensors.torch.load_file(path))
    return weights


def same_bits(ours, theirs):
    if sorted(ours) != sorted(theirs):
        return f"names differ: {sorted(set(ours) ^ set(theirs))[:4]}"
    for name, tensor in theirs.items():
        if ours[name].dtype != tensor.dtype or not torch.equal(ours[name], tensor):
            return f"{name} differs"
    return ""


def check_loss(checker, what, checkpoint, model, tokens):
    path = checker.folder / "tokens.i32"
    path.write_bytes(tokens.to(torch.int32).numpy().tobytes())
    ours = checker.run("loss", checkpoint, path, CONTEXT)
    with torch.no_grad():
        logits = copy.deepcopy(model).double()(tokens[:, :-1]).logits.reshape(-1, model.config.vocab_size)
        theirs = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].reshape(-1)).item()
    error = abs(float(ours or "nan") - theirs) / theirs
    checker.check(f"{what}: loss", error < LOSS_TOLERANCE, f"{ours} and {theirs} of float64, relative {error:.2e}")
    return theirs


def check_export(checker, what, checkpoint, original, tokens, loss, dtype, shard_bytes):
    out = checker.folder / f"{what}-{dtype}-{shard_bytes}"
    checker.run("export", checkpoint, out, dtype, shard_bytes)
    twin = checker.folder / f"{what}-{dtype}-{shard_bytes}-again"
    checker.run("export", checkpoint, twin, dtype, shard_bytes)
    names = sorted(path.name for path in out.iterdir())
    equal = names == sorted(path.name for path in twin.iterdir()) and all(
        (out / name).read_bytes() == (twin / name).read_bytes() for name in names)
    checker.check(f"{out.name}: exported twice, the same bytes", equal, f"{len(names)} files")
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    expected = {name: tensor.detach().to(kind) for name, tensor in original.state_dict().items()}
    difference = same_bits(weights_of(out), expected)
    checker.check(f"{out.name}: tensors have the bits of torch's conversion", not difference, difference)
    checker.refused("an export onto itself", "exists", "export", checkpoint, out, dtype, shard_bytes)

    model, info = LlamaForCausalLM.from_pretrained(out, dtype="auto", output_loading_info=True)
    wrong = {key: value for key, value in info.items() if value}
    checker.check(f"{out.name}: transformers loads it whole", not wrong, str(wrong) if wrong else "")
    checker.check(f"{out.name}: in {kind}", model.dtype == kind, str(model.dtype))
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                "head_dim", "vocab_size", "rms_norm_eps", "max_position_embeddings", "hidden_act", "attention_bias",
                "mlp_bias", "tie_word_embeddings", "rope_parameters"):
        ours, theirs = getattr(model.config, key), getattr(original.config, key)
        if ours != theirs:
            checker.check(f"{out.name}: config {key}", False, f"{ours} and {theirs}")
    with torch.no_grad():
        ours = model.float()(tokens[:, :-1]).logits
        theirs = original(tokens[:, :-1]).logits
    if dtype == "fp32":
        checker.check(f"{out.name}: logits have the original's bits", torch.equal(ours, theirs))
    else:
        again = torch.nn.functional.cross_entropy(ours.reshape(-1, ours.shape[-1]), tokens[:, 1:].reshape(-1)).item()
        checker.check(f"{out.name}: loss is the original's but for rounding",
                      abs(again - loss) / loss < BF16_LOSS_TOLERANCE, f"{again:.6f} and {loss:.6f}")
    return out


def check_model(checker, name, shape, dtype, shards, max_shard):
    what = f"{name}-{str(dtype).removeprefix('torch.')}-V{shards}"
    original = make_model(shape, dtype)
    saved = checker.folder / f"{what}-saved"
    save(original, saved, dtype, max_shard)
    checkpoint = checker.folder / f"{what}-checkpoint"
    checker.run("import", saved, checkpoint, shards)
    tokens = torch.randint(0, shape["vocab_size"], (3, CONTEXT + 1), generator=torch.Generator().manual_seed(3))
    loss = check_loss(checker, what, checkpoint, original, tokens)
    fp32 = check_export(checker, what, checkpoint, original, tokens, loss, "fp32", 5_000_000_000)
    check_export(checker, what, checkpoint, original, tokens, loss, "bf16", 60_000)
    check_export(checker, what, checkpoint, original, tokens, loss, "fp32", 60_000)

    again = checker.folder / f"{what}-again"
    checker.run("import", fp32, again, shards)
    parts = [(folder / "part-00000.h5").read_bytes() for folder in (checkpoint, again)]
    checker.check(f"{what}: import, export, import gives the same part", parts[0] == parts[1])
    for directory in (saved, fp32):
        single = directory / "model.safetensors"
        if single.exists():
            # safetensors' own writer, given our tensors, writes what we wrote.
            rewritten = checker.folder / "rewritten.safetensors"
            safetensors.torch.save_file(safetensors.torch.load_file(single), rewritten, metadata={"format": "pt"})
            checker.check(f"{directory.name}: safetensors writes the same file",
                          rewritten.read_bytes() == single.read_bytes())


def check_refusals(checker):
    shape = MODELS["grouped"]
    target = checker.folder / "never"

    def refused(what, words, **more):
        directory = checker.folder / what.replace(" ", "-")
        make_model(shape, **more).save_pretrained(directory)
        checker.refused(what, words, "import", directory, target, 1)

    refused("tied embeddings", "tie_word_embeddings", tie=True)
    refused("biases", "attention_bias", attention_bias=True)
    refused("another activation", "hidden_act", hidden_act="gelu")
    without_theta = {key: value for key, value in shape.items() if key != "rope_theta"}
    for kind in ({"rope_type": "linear", "factor": 2.0},
                 {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                  "original_max_position_embeddings": 32}):
        directory = checker.folder / f"rope-{kind['rope_type']}"
        make_model(without_theta, rope_parameters={"rope_theta": 5e5, **kind}).save_pretrained(directory)
        checker.refused(f"rotary embeddings, {kind['rope_type']}", "rope_", "import", directory, target, 1)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, safetensors {safetensors.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        checker = Checker(os.path.abspath(sys.argv[1]), folder)
        check_model(checker, "grouped", MODELS["grouped"], torch.float32, 4, "100KB")
        check_model(checker, "grouped", MODELS["grouped"], torch.bfloat16, 2, "5GB")
        check_model(checker, "plain", MODELS["plain"], torch.float32, 1, "5GB")
        check_model(checker, "plain", MODELS["plain"], torch.float16, 4, "5GB")
        check_refusals(checker)
    print(f"{checker.failures} failed")
    return 1 if checker.failures else 0


if __name__ == "__main__":
    sys.exit(main())
