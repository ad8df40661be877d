#!/usr/bin/env bash
# Installs what is missing, builds, and runs the tests. Says last which were skipped, and why.
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

jobs=$(nproc)

# Tests that were skipped in a build's last run of ctest: how many, and for each reason how many and which.
print_skipped() {
  local lines
  lines=$(awk '/^[0-9]+\/[0-9]+ Testing: / { name = $3 }
               /: Skipped$/ && name != "" { getline reason; print reason "\t" name; name = "" }' \
    "$1/Testing/Temporary/LastTest.log" | sort)
  if [[ -z $lines ]]; then
    echo "skipped: none"
    return
  fi
  echo "skipped: $(wc -l <<<"$lines")"
  cut -f 1 <<<"$lines" | uniq -c | sort -rn | while read -r count reason; do
    echo "  $count: $reason"
    awk -F'\t' -v reason="$reason" '$1 == reason { printf "%s ", $2 }' <<<"$lines" | fold -s -w 112 | sed 's/^/      /; s/ *$//'
    echo
  done
}

# run_ctest BUILD_DIR ARGUMENT...: ctest's own list of what was skipped has a line for each and no reasons.
run_ctest() {
  local build=$1 code=0
  shift
  ctest --test-dir "$build" --output-on-failure --no-tests=error -j "$jobs" "$@" |
    sed '/^The following tests did not run:$/,/^$/d' || code=$?
  print_skipped "$build"
  return "$code"
}

launch/install_packages.sh tests
launch/build.sh release
echo "tests: release"
run_ctest build -LE "$( ((all)) && echo none || echo long)"

((all)) || exit 0

for preset in asan tsan; do
  echo "tests: $preset"
  launch/build.sh "$preset" sanitizer_tests
  run_ctest "build-$preset" -L sanitizer
done
