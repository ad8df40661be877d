#!/usr/bin/env python3
"""A trainer that is not Perdure's: state is one number, summed over all ranks at each step.

exec_trainer.py DIRECTORY STEPS [--crash-at STEP] [--hang-at STEP] [--deaf] [--give-up-at STEP]

Ranks meet at MASTER_ADDR:MASTER_PORT. Rank 0 keeps the state in DIRECTORY/state.json every 10 steps and when it is told to
leave; what is asked for by --crash-at and the like happens once, to rank 1 (or the only one), in the first life that comes
to that step. Standard library only.
"""
import argparse, json, os, signal, socket, struct, sys, time

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
ADDRESS = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
leaving = False


def on_signal(number, frame):
    global leaving
    leaving = True


class Group:
    """All-reduce through rank 0."""

    def __init__(self):
        self.peers = []
        if RANK == 0:
            listener = socket.create_server(("", ADDRESS[1]), backlog=WORLD)
            listener.settimeout(60)
            self.peers = [listener.accept()[0] for _ in range(WORLD - 1)]
            return
        for _ in range(600):
            try:
                self.peers = [socket.create_connection(ADDRESS, timeout=60)]
                self.peers[0].settimeout(None)
                return
            except OSError:
                time.sleep(0.1)
        sys.exit("rank 0 is not there")

    @staticmethod
    def read(peer):
        data = b""
        while len(data) < 8:
            more = peer.recv(8 - len(data))
            if not more:
                raise ConnectionError("a rank is gone")
            data += more
        return struct.unpack("q", data)[0]

    def add(self, value):
        if RANK == 0:
            total = value + sum(self.read(peer) for peer in self.peers)
            for peer in self.peers:
                peer.sendall(struct.pack("q", total))
            return total
        self.peers[0].sendall(struct.pack("q", value))
        return self.read(self.peers[0])


def once(directory, what):
    try:
        os.close(os.open(f"{directory}/{what}", os.O_CREAT | os.O_EXCL))
        return RANK == min(1, WORLD - 1)
    except FileExistsError:
        return False


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("steps", type=int)
    for name in ("crash-at", "hang-at", "give-up-at"):
        parser.add_argument("--" + name, type=int, default=-1)
    parser.add_argument("--seconds", type=float, default=0.02)
    parser.add_argument("--deaf", action="store_true")
    parser.add_argument("--signal", default="TERM")
    options = parser.parse_args()
    if options.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(getattr(signal, "SIG" + options.signal), on_signal)
    os.makedirs(options.directory, exist_ok=True)
    path = f"{options.directory}/state.json"
    step, total = 0, 0
    if os.path.exists(path):
        state = json.load(open(path))
        step, total = state["step"], state["total"]
    print(f"rank {RANK} of {WORLD} begins at step {step}, local {os.environ['LOCAL_RANK']} of "
          f"{os.environ['LOCAL_WORLD_SIZE']}, group {os.environ['GROUP_RANK']} of {os.environ['GROUP_WORLD_SIZE']}, "
          f"life {os.environ['TORCHELASTIC_RESTART_COUNT']}", flush=True)
    group = Group()

    def save():
        if RANK != 0:
            return
        with open(path + ".new", "w") as file:
            json.dump({"step": step, "total": total, "world": WORLD}, file)
        os.replace(path + ".new", path)

    while step < options.steps:
        if group.add(int(leaving)) > 0:  # All leave at one step.
            save()
            print(f"rank {RANK} leaves at step {step}", flush=True)
            return 0
        step += 1
        # Whatever the number of ranks is, the same sum.
        total += group.add(step if RANK == 0 else 0)
        time.sleep(options.seconds)
        me = RANK == min(1, WORLD - 1)
        if step == options.crash_at and me and once(options.directory, "crashed"):
            print("this is why it crashed", flush=True)
            os._exit(7)
        if step == options.hang_at and me and once(options.directory, "hung"):
            time.sleep(1000)
        if step == options.give_up_at and me:
            sys.exit(93)
        if step % 10 == 0:
            save()
            if RANK == 0:
                with open(os.environ["PERDURE_PROGRESS"], "a") as file:
                    file.write(json.dumps({"step": step, "loss": 1.0 / step}) + "\n")
    save()
    return 0


sys.exit(main())
