#!/usr/bin/env python3
"""A PyTorch trainer under Perdure's chain of jobs: what it has to do, and no more.

    perdure run    --run-dir runs/mine --ranks-per-node 2          --exec python3 train.py --steps 2000
    perdure submit --run-dir runs/mine --site jean-zay-h100 --set job.nodes=4 --set job.ranks_per_node=4 \
                   --set job.time_limit=20h                        --exec python3 train.py --steps 500000

It starts as under torchrun (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). Four things make it a good member of a
chain, all marked below: it resumes from its own newest checkpoint; it leaves with one when it gets SIGTERM, all ranks at one
step; it says how far it is in PERDURE_PROGRESS; it ends with 0 only when it is done.

The model is a small byte-level language model on bytes of its own; replace it by yours.
"""
import argparse
import json
import os
import signal

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--save-every", type=int, default=100)
parser.add_argument("--batch", type=int, default=8, help="of a rank")
parser.add_argument("--context", type=int, default=64)
parser.add_argument("--crash-at", type=int, default=-1, help="end badly after this step, in the first life")
options = parser.parse_args()

run_directory = os.environ.get("PERDURE_RUN_DIR", ".")
checkpoint = os.path.join(run_directory, "torch", "state.pt")
rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])

# Told to leave: only noted, because a signal comes between any two instructions.
told_to_leave = False


def leave(number, frame):
    global told_to_leave
    told_to_leave = True


signal.signal(signal.SIGTERM, leave)

cuda = torch.cuda.is_available()
device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
if cuda:
    torch.cuda.set_device(device)
dist.init_process_group("nccl" if cuda else "gloo")


class Model(torch.nn.Module):
    def __init__(self, width=64, heads=4, layers=2):
        super().__init__()
        self.embedding = torch.nn.Embedding(256, width)
        layer = torch.nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True)
        self.blocks = torch.nn.TransformerEncoder(layer, layers)
        self.head = torch.nn.Linear(width, 256)

    def forward(self, tokens):
        mask = torch.nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=tokens.device)
        return self.head(self.blocks(self.embedding(tokens), mask=mask, is_causal=True))


torch.manual_seed(1)
model = DistributedDataParallel(Model().to(device))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)


def batch_of(step):
    """The same samples whatever job takes the step: a counter, and no position that would have to be saved."""
    generator = torch.Generator().manual_seed(step * 1_000_003 + rank)
    begins = torch.randint(0, 256, (options.batch, 1), generator=generator)
    return ((begins + 7 * torch.arange(options.context + 1)) % 256).to(device)


# 1. It resumes from its own newest checkpoint.
step = 0
if os.path.exists(checkpoint):
    state = torch.load(checkpoint, map_location=device, weights_only=True)
    model.module.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    step = state["step"]
if rank == 0:
    print(f"{dist.get_world_size()} ranks go on from step {step}", flush=True)


def save():
    if rank == 0:
        os.makedirs(os.path.dirname(checkpoint), exist_ok=True)
        state = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        torch.save(state, checkpoint + ".new")
        os.replace(checkpoint + ".new", checkpoint)
    dist.barrier()


while step < options.steps:
    tokens = batch_of(step)
    loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    step += 1
    # 2. It leaves when it is told to: whoever was told tells the others, so that all do at one step.
    said = torch.tensor([loss.item(), float(told_to_leave)], device=device)
    dist.all_reduce(said)
    leaves = said[1].item() > 0
    if step == options.crash_at and rank == 0 and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        os._exit(1)
    if step % options.save_every == 0 or leaves or step == options.steps:
        save()
    # 3. It says how far it is.
    if rank == 0 and "PERDURE_PROGRESS" in os.environ:
        with open(os.environ["PERDURE_PROGRESS"], "a") as file:
            file.write(json.dumps({"step": step, "loss": said[0].item() / dist.get_world_size()}) + "\n")
    if leaves:
        break
# 4. It ends with 0 when it is done. (Told to leave, it may end as it likes.)
dist.destroy_process_group()
