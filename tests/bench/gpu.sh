#!/usr/bin/env bash
# shellcheck disable=SC2016,SC2317 # A part runs in a bash of its own, which gets functions by export -f.
# All that needs a GPU, in one call of less than ten minutes: tests, bits, checkpoints, speed. Prints one table last.
#   tests/bench/gpu.sh                        build first: nvcc, cuBLAS, cuDNN and launch/install_packages.sh's packages
#   tests/bench/gpu.sh --no-build BUILD_DIR   with the binaries that are there
#     --only PART[,PART]   of tests layouts resume kill nccl cpu bench save train torch sanitizer
#     -o FILE              the tables as markdown, and all numbers as JSON lines
#     --layers L           blocks of the model that is trained, or as many as fit (default 4)
#     --cases NAME[,NAME]  of gpu_train.py (default 4096-V1,32000-V1; all: with 4096-V4,32000-V4)
#     --budget SECONDS     for all parts (default 570); what finds no time left is skipped, and said
#     --full               gpu_bench in full length, not --quick
#     --work DIR           runs and logs are kept there (default: a folder that is removed)
#     --backend NAME       numerics.backend of all runs but `cpu` (default cuda; "" for a build without that key)
# Exits with 1 when a part fails. Commits are found by git, or named by PERDURE_COMMIT.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)

all="tests layouts resume kill nccl cpu bench save train torch sanitizer"
build="" only="" output="" layers=4 cases=4096-V1,32000-V1 budget=570 quick=--quick work="" backend=cuda
usage() { sed -n '3,/^set /{/^set /!s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
while (($#)); do
  case "$1" in
    --full) quick=""; shift; continue ;;
    --no-build | --only | -o | --layers | --cases | --budget | --work | --backend) (($# >= 2)) || usage ;;
    *) usage ;;
  esac
  case "$1" in
    --no-build) build=$(cd "$2" && pwd) ;;
    --only) only=${2//,/ } ;;
    -o) output=$2 ;;
    --layers) layers=$2 ;;
    --cases) cases=$2 ;;
    --budget) budget=$2 ;;
    --work) work=$2 ;;
    --backend) backend=$2 ;;
  esac
  shift 2
done
for part in $only; do [[ " $all " == *" $part "* ]] || usage; done

if [[ -z $work ]]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
fi
mkdir -p "$work"
work=$(cd "$work" && pwd)
rm -f "$work"/*.log
if [[ -z $build ]]; then
  "$root/launch/build.sh" release
  build=$root/build
fi

began=$SECONDS
python=${PYTHON:-python3}
# What a part does; the seconds it may take.
run_tests() { "$python" "$here/gpu_check.py" tests "$build" "$work" --backend "$backend"; }
run_check() { "$python" "$here/gpu_check.py" "$1" "$build" "$work" --backend "$backend" --bench-json "$work/bench.jsonl"; }
run_bench() { "$build/bench/gpu_bench" ${quick:+"$quick"} --json "$work/bench.jsonl"; }
run_train() {
  "$python" "$here/gpu_train.py" "$build" "$work/train" --backend "$backend" --layers "$layers" --cases "$cases" \
    --json "$work/train.json" "$@"
}
limit_of() {
  case "$1" in
    tests) echo 200 ;; layouts) echo 150 ;; resume) echo 60 ;; kill) echo 90 ;; cpu) echo 60 ;;
    nccl) echo 180 ;; sanitizer) echo 90 ;;
    bench) echo 120 ;; save) echo 120 ;; train) echo 300 ;; torch) echo 300 ;;
  esac
}
do_part() {
  case "$1" in
    tests) run_tests ;;
    bench) run_bench ;;
    train) run_train --skip-torch ;;
    torch) run_train --skip-ours --seconds 60 ;;
    *) run_check "$1" ;;
  esac
}
export PYTHONUNBUFFERED=1 here build work backend layers cases quick python
export -f do_part run_tests run_check run_bench run_train

declare -A state seconds
failed=0
for part in $all; do
  if [[ -n $only && " $only " != *" $part "* ]]; then continue; fi
  left=$((budget - (SECONDS - began)))
  if ((left < 10)); then
    state[$part]="skipped: no time left of $budget s" seconds[$part]=0
    failed=1
    continue
  fi
  limit=$(limit_of "$part")
  limit=$((limit < left ? limit : left))
  echo "== $part (at most $limit s)"
  start=$SECONDS code=0
  # The whole process group is told at the limit, what the part has started too; the trap lets it put things away.
  timeout -k 15 "$limit" bash -c 'trap : TERM; do_part "$1"' part "$part" >"$work/$part.log" 2>&1 </dev/null || code=$?
  seconds[$part]=$((SECONDS - start))
  case $code in
    0) state[$part]=ok ;;
    2) [[ $part == bench ]] && state[$part]="FAILED: no GPU" || state[$part]="FAILED: exit code 2" ;;
    124 | 137) state[$part]="FAILED: not finished after $limit s" ;;
    *) state[$part]="FAILED: exit code $code" ;;
  esac
  if ((code)); then
    failed=1
    grep -v '^RESULT' "$work/$part.log" | tail -30 || true
  fi
done

device=$(nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>/dev/null | head -1 || true)
commit=${PERDURE_COMMIT:-$(git -C "$root" describe --always --dirty 2>/dev/null || echo unknown)}
versions=$(grep -m 1 '^cuda' "$work/bench.log" 2>/dev/null || true)
table() {
  echo "$(date -u +%Y-%m-%d), ${device:-no GPU found}, commit $commit${versions:+, $versions}"
  echo
  echo "| part | state | seconds | what |"
  echo "|---|---|---|---|"
  local part
  for part in $all; do
    [[ -n ${state[$part]:-} ]] || continue
    echo "| $part | ${state[$part]} | ${seconds[$part]} | |"
    [[ -f $work/$part.log ]] || continue
    if [[ ${state[$part]} == FAILED* ]] && ! grep -qP '^RESULT\t' "$work/$part.log"; then
      echo "| | | | $(tail -1 "$work/$part.log" | cut -c1-300) |"
    fi
    { grep -P '^RESULT\t' "$work/$part.log" || true; } | awk -F'\t' '{ print "| | " $3 " | | " $4 " |" }'
  done
  if [[ -f $work/train.json ]]; then
    echo
    { grep -h '^|' "$work/torch.log" 2>/dev/null || grep -h '^|' "$work/train.log" 2>/dev/null || true; }
  fi
}
if [[ -n $output ]]; then
  {
    table
    if [[ -f $work/bench.log ]]; then printf '\n```\n%s\n```\n' "$(cat "$work/bench.log")"; fi
    echo
    echo '```json'
    cat "$work/bench.jsonl" 2>/dev/null || true
    if [[ -f $work/train.json ]]; then "$python" -c 'import json, sys; print(json.dumps(json.load(open(sys.argv[1]))))' "$work/train.json"; fi
    echo '```'
  } >"$output"
fi
if [[ -f $work/bench.log ]]; then
  echo
  cat "$work/bench.log"
fi
echo
table
exit $failed
