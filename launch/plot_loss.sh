#!/usr/bin/env bash
# Draws metrics/loss.csv in the terminal. Usage: launch/plot_loss.sh LOSS_CSV [COLUMNS] [ROWS]
set -euo pipefail

awk -F, -v width="${2:-72}" -v height="${3:-16}" '
  NR == 1 { for (i = 1; i <= NF; i++) column[$i] = i; next }
  { step[++n] = $column["step"]; loss[n] = $column["loss"]; generation[n] = $column["generation"] }
  END {
    if (n == 0) { print "no step yet"; exit }
    if (width > n) width = n
    # Each column shows the mean of its steps.
    for (x = 1; x <= width; x++) {
      from = int((x - 1) * n / width) + 1; to = int(x * n / width); sum = 0
      for (i = from; i <= to; i++) sum += loss[i]
      mean[x] = sum / (to - from + 1); job[x] = generation[to]
      if (x == 1 || mean[x] < low) low = mean[x]
      if (x == 1 || mean[x] > high) high = mean[x]
    }
    span = high > low ? high - low : 1
    for (y = height; y >= 1; y--) {
      line = ""
      for (x = 1; x <= width; x++)
        line = line (int((mean[x] - low) / span * (height - 1) + 1.5) == y ? (job[x] % 2 ? "*" : "o") : " ")
      printf "%7.3f |%s\n", low + (y - 1) * span / (height - 1), line
    }
    dashes = ""; for (x = 1; x <= width; x++) dashes = dashes "-"
    printf "        +%s\n         step %d to %d; * and o: one job and the next\n", dashes, step[1], step[n]
  }' "$1"
