#!/usr/bin/env bash
# Builds the fuzz targets with clang and runs each for so many seconds (60) on its corpus. What a target finds stays in
# build-fuzz/found/<target>/. A second argument names one target.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-60}
build="build-fuzz"
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_COMPILER=clang++ -DPERDURE_FUZZ=ON \
  "-DPERDURE_PARTS=runtime/base;ckpt;runtime/wire" -DPERDURE_TESTS=none > /dev/null
failed=0
for corpus in tests/fuzz/corpus/*/; do
  target=$(basename "$corpus")
  [[ -z ${2:-} || $2 == "$target" ]] || continue
  ninja -C "$build" -j "$(nproc)" "${target}_fuzz" > "$build/build.log" || { cat "$build/build.log"; exit 1; }
  mkdir -p "$build/found/$target" "$build/corpus/$target"
  echo "fuzz: $target for $seconds s"
  # New inputs go to the first folder; the committed one is only read.
  if ! "$build/fuzz/${target}_fuzz" -max_total_time="$seconds" -max_len=16384 -timeout=20 -rss_limit_mb=2048 \
    -print_final_stats=1 -artifact_prefix="$build/found/$target/" "$build/corpus/$target" "$corpus" \
    > "$build/$target.log" 2>&1; then
    failed=1
    echo "fuzz: $target FAILED"
    tail -40 "$build/$target.log"
  fi
  grep -E "cov: |number_of_executed_units" "$build/$target.log" | tail -2
done
exit "$failed"
