#!/usr/bin/env bash
# Configures and builds one preset (default: release). Usage: launch/build.sh [PRESET] [ninja arguments]
# PERDURE_CUDA=OFF in the environment leaves the CUDA backend out; ON demands it; else it is built where it can be.
set -euo pipefail
cd "$(dirname "$0")/.."

preset=${1:-release}
shift || true
log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "build: configuring preset $preset"
if ! cmake --preset "$preset" -DPERDURE_CUDA="${PERDURE_CUDA:-AUTO}" >"$log" 2>&1; then
  cat "$log" >&2
  exit 1
fi
cmake --build --preset "$preset" -- "$@"
