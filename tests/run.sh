#!/usr/bin/env bash
# Installs what is missing, builds, and runs the tests.
#   tests/run.sh         what CI runs
#   tests/run.sh --all   and the long suites: the full layout matrix, AddressSanitizer with UBSan, ThreadSanitizer
set -euo pipefail
cd "$(dirname "$0")/.."

all=0
for argument in "$@"; do
  case "$argument" in
    --all) all=1 ;;
    *) echo "usage: tests/run.sh [--all]" >&2; exit 2 ;;
  esac
done

launch/install_packages.sh
launch/build.sh release
jobs=$(nproc)
echo "tests: release"
ctest --test-dir build --output-on-failure --no-tests=error -j "$jobs" -LE "$( ((all)) && echo none || echo long)"

((all)) || exit 0

for preset in asan tsan; do
  echo "tests: $preset"
  launch/build.sh "$preset" sanitizer_tests
  ctest --test-dir "build-$preset" --output-on-failure --no-tests=error -j "$jobs" -L sanitizer
done
