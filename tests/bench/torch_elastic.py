"""A rank of recovery_bench.py's PyTorch job: the nano model under DistributedDataParallel, a checkpoint after every step.

Started by torchrun with --max-restarts: after a failure all ranks are started again and load the newest checkpoint. Writes
FOLDER/pid.RANK when it starts, and rank 0 appends "step clock" to FOLDER/steps after each step, by CLOCK_MONOTONIC.
usage: torchrun ... torch_elastic.py FOLDER; ends when FOLDER/stop exists.
"""
import os
import pathlib
import sys
import time

import torch
import torch.distributed as dist

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "golden"))
from torch_llama import Llama  # noqa: E402
from torch_step import weights  # noqa: E402
from recovery_bench import BATCH, CONTEXT, MODEL  # noqa: E402


class Loss(torch.nn.Module):
    """What DistributedDataParallel calls."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, samples):
        return self.net.loss(samples, 5e5)


def main():
    folder = pathlib.Path(sys.argv[1])
    torch.set_num_threads(1)
    # A file for each attempt: with the launcher's own store a second attempt finds the addresses of dead ranks (torch 2.15).
    place = (folder / f"meet.{os.environ['TORCHELASTIC_RESTART_COUNT']}").absolute()
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=int(os.environ["RANK"]),
                            world_size=int(os.environ["WORLD_SIZE"]))
    rank, size = dist.get_rank(), dist.get_world_size()
    (folder / f"pid.{rank}").write_text(str(os.getpid()))
    net = Llama(weights(MODEL), MODEL["heads"], MODEL["kv_heads"])
    model = torch.nn.parallel.DistributedDataParallel(Loss(net))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    step, checkpoint = 0, folder / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint)
        net.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    stop = torch.zeros(1)
    while stop.item() == 0:
        samples = torch.randint(0, MODEL["vocab"], (BATCH // size, CONTEXT + 1),
                                generator=torch.Generator().manual_seed(step * size + rank))
        optimizer.zero_grad(set_to_none=True)
        model(samples).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        step += 1
        if rank == 0:
            new = folder / "checkpoint.new"
            torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, new)
            new.rename(checkpoint)
            with open(folder / "steps", "a") as file:
                file.write(f"{step} {time.monotonic()}\n")
            stop[0] = (folder / "stop").exists()
        dist.broadcast(stop, 0)
    dist.destroy_process_group()


main()
