#!/usr/bin/env python3
"""Draws docs/scale.svg from perdure_sim_scale: build/tests/perdure_sim_scale 125 250 ... --json | tests/sim/plot_scale.py OUT.svg

Needs python3-matplotlib. Left: a lost node's cost in the coordinator's processor time, with the line of equal cost per rank.
Right: what does not grow: detection, re-forming, messages per node.
"""
import json
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

matplotlib.rcParams.update({"svg.hashsalt": "perdure", "svg.fonttype": "none", "font.family": "sans-serif"})


def main():
    rows = [json.loads(line) for line in sys.stdin]
    ranks = [row["ranks"] for row in rows]
    figure, (cost, flat) = plt.subplots(1, 2, figsize=(9, 3.6))
    for key, label in [("reform_cpu_ms", "re-form after a lost node"), ("start_cpu_ms", "start of the job")]:
        cost.loglog(ranks, [row[key] for row in rows], marker="o", label=label)
    last = rows[-1]["reform_cpu_ms"] / ranks[-1]
    cost.loglog(ranks, [last * n for n in ranks], "k:", linewidth=1, label="linear")
    cost.axhline(200, color="grey", linewidth=0.8, linestyle="--")
    cost.text(ranks[0], 215, "200 ms", color="grey", fontsize=8)
    cost.set_ylabel("coordinator's CPU, ms")
    for key, label, scale in [("detect_ms", "detect, s", 1e-3), ("reform_ms", "re-form, s", 1e-3)]:
        flat.semilogx(ranks, [row[key] * scale for row in rows], marker="o", label=label)
    flat.semilogx(ranks, [row["messages_per_node"] / 10 for row in rows], marker="o", label="messages per node / 10")
    flat.set_ylim(bottom=0)
    flat.set_ylabel("simulated seconds")
    for axes in (cost, flat):
        axes.set_xlabel("ranks")
        axes.legend(fontsize=8)
        axes.grid(True, which="major", linewidth=0.3)
    figure.tight_layout()
    figure.savefig(sys.argv[1], metadata={"Date": None})


if __name__ == "__main__":
    main()
