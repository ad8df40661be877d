#!/usr/bin/env bash
# From a fresh Debian 12 to a language model that is trained over 8 processes, stopped, resumed at another layout, loses
# one of its processes, and ends in the same bits as one that was never disturbed.
#   launch/quickstart.sh               all of it
#   launch/quickstart.sh --build-only  install and build, nothing more
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
  "") ;;
  --build-only) ;;
  *) echo "usage: launch/quickstart.sh [--build-only]" >&2; exit 2 ;;
esac

began=$SECONDS
say() { printf '\n\033[1m== %s\033[0m  (%d s)\n' "$*" $((SECONDS - began)); }
[[ -t 1 && -z "${NO_COLOR:-}" ]] || say() { printf '\n== %s  (%d s)\n' "$*" $((SECONDS - began)); }

say "packages"
launch/install_packages.sh
began=$SECONDS
say "build"
# A newcomer without a GPU need not wait for its kernels; --build-only and tests/run.sh build them wherever nvcc is: a
# login node has none either.
if [[ "${1:-}" != --build-only ]] && ! compgen -G "/dev/nvidia[0-9]*" >/dev/null; then
  export PERDURE_CUDA=${PERDURE_CUDA:-OFF}
fi
launch/build.sh release perdure
perdure=$PWD/build/perdure
if [[ "${1:-}" == --build-only ]]; then
  echo "built: build/perdure"
  exit 0
fi

work=build/quickstart
cache=${XDG_CACHE_HOME:-$HOME/.cache}/perdure/corpus
rm -rf "$work"
mkdir -p "$work/data"
cp launch/recipes/nano.toml "$work/nano.toml"

say "corpus: manuals in five languages from Debian packages"
launch/corpus.sh "$cache" --small
"$perdure" data build --from "$cache/text" --tokenizer sentencepiece:1024 -o "$work/data/nano" </dev/null
for language in en fr de es it; do
  "$perdure" data build --from "$cache/text/$language" --tokenizer "$work/data/nano.model" \
    -o "$work/data/$language" </dev/null 2>/dev/null | grep -E '^(documents|tokens)' | tr '\n' ' '
  echo "($language)"
done

say "what the run is"
"$perdure" plan "$work/nano.toml" --nodes 2 --ranks-per-node 4

# Stops with 75: more to do.
job() {
  local code=0
  "$perdure" run "$work/nano.toml" "$@" || code=$?
  [[ $code == 0 || $code == 75 ]] || exit "$code"
}

say "train on 8 ranks (2 nodes of 4: tensor 2, pipeline 2, data 2), stop half-way"
job --run-dir "$work/run" --nodes 2 --ranks-per-node 4 --until-step 60

say "resume on 6 ranks at another layout (tensor 1, pipeline 2, data 3, ZeRO 3), to the end; kill one of them on the way"
job --run-dir "$work/run" --nodes 1 --ranks-per-node 6 --set layout.tensor=1 --set layout.zero=3 &
resumed=$!
until "$perdure" status "$work/run" | grep -q '^state *running'; do
  kill -0 "$resumed" 2>/dev/null || break
  sleep 0.2
done
"$perdure" drill "$work/run" --kind rank --seed 1 || { kill "$resumed"; wait "$resumed"; exit 1; }
wait "$resumed"

say "the same run, never disturbed, on 2 ranks"
job --run-dir "$work/whole" --nodes 1 --ranks-per-node 2 --set layout.tensor=1 --set layout.pipeline=1

say "loss by step"
launch/plot_loss.sh "$work/run/metrics/loss.csv"

say "certificates of both ends"
for run in run whole; do
  printf '%-6s %s\n' "$run" "$("$perdure" ckpt list "$work/$run" --json | grep -o '"certificate": *"[0-9a-f]*"' | tail -1)"
done
"$perdure" ckpt diff "$work/run" "$work/whole"
if cmp <(cut -d, -f1,5 "$work/run/metrics/loss.csv") <(cut -d, -f1,5 "$work/whole/metrics/loss.csv"); then
  echo "120 losses: the same bits in both runs"
fi

say "next"
cat <<EOF
  build/perdure status $work/run                      what a run is doing
  build/perdure ckpt inspect \$(ls -d $work/run/ckpt/* | tail -1)
  build/perdure data inspect $work/data/fr --tokenizer $work/data/nano.model --document 0
  build/perdure plan launch/recipes/lucie/run.toml                    the run this project exists for
  docs/getting-started.md                                             the same, step by step
EOF
