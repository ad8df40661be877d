#!/usr/bin/env bash
# Has SPIN search every state of a model: the sound protocol must hold, and each broken variant must be refuted.
#   check.sh MODEL.pml    one line a variant; 1 if one of them came out otherwise than it must, 77 without SPIN
#   check.sh --self       what this script says to variants whose outcome is declared wrongly
# Works in a folder of its own under $TMPDIR, two variants at a time. No search is approximate: one cut short fails.
set -euo pipefail

model=${1:-}
model=${model%.pml}
here=$(cd "$(dirname "$0")" && pwd)
for tool in spin gcc; do
  command -v "$tool" > /dev/null && continue
  echo "$0: Skipped" # As GoogleTest says it, for tests/run.sh.
  echo "no $tool: launch/install_packages.sh tests"
  exit 77
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
count=0

# Runs variant COUNT in the background.
#   sound WHAT [-DFLAG...]             must hold, in all states
#   fair WHAT [-DFLAG...]              the same for its ltl claim, under weak fairness
#   broken TEXT WHAT [-DFLAG...]       must violate an assertion whose text holds TEXT
#   stuck WHAT [-DFLAG...]             must violate its ltl claim
sound() { start sound "" "$@"; }
fair() { start fair "" "$@"; }
broken() { start broken "$@"; }
stuck() { start stuck "acceptance cycle" "$@"; }

start() {
  if ((count >= 2)); then wait -n || true; fi
  run_variant "$count" "$@" &
  count=$((count + 1))
}

# run_variant INDEX KIND TEXT WHAT [FLAG...]: writes its line to $work/INDEX.line.
run_variant() {
  local folder=$work/$1 line=$work/$1.line kind=$2 text=$3 what=$4
  local verdict begin seconds megabytes states
  shift 4
  local compile=(-O1 -w -DMEMLIM=1000 -DVECTORSZ=512) search=(-m"${DEPTH:-500000}" -w22)
  case $kind in
    sound) compile+=(-O2 -DSAFETY -DNOREDUCE) ;;
    broken) compile+=(-O0 -DSAFETY -DNOREDUCE) ;;
    fair | stuck) compile+=(-DNFAIR=3) search+=(-a -f) ;;
  esac
  mkdir "$folder"
  (cd "$folder" && spin "$@" -a "$here/$model.pml" && gcc "${compile[@]}" -o pan pan.c) > "$folder/build" 2>&1 || true
  begin=${EPOCHREALTIME/[.,]/}
  (cd "$folder" && timeout 300 ./pan "${search[@]}") > "$folder/out" 2>&1 || true
  seconds=$(((${EPOCHREALTIME/[.,]/} - begin) / 10000))
  states=$(awk '/states, stored/ { print $1 }' "$folder/out")
  megabytes=$(awk '/total actual memory usage/ { print int($1 + 1) }' "$folder/out")
  verdict=$(judge "$kind" "$text" "$folder/out")
  printf '%-8s %-6s %9s states %3d.%02d s %4s MB  %s%s\n' "$verdict" "$kind" "${states:-no}" \
    "$((seconds / 100))" "$((seconds % 100))" "${megabytes:-?}" "$what" "${*:+ [$*]}" > "$line"
  if [[ $verdict == FAILED ]]; then
    { tail -n 20 "$folder/build"; grep -v '^Depth=' "$folder/out" | head -n 20; } | sed 's/^/    /' >> "$line"
  fi
  rm -rf "$folder"
}

# judge KIND TEXT FILE: what the output of a search says about a variant.
judge() {
  local verdict=FAILED
  case $1 in
    sound | fair)
      if grep -q 'errors: 0$' "$3" && ! grep -qE 'too small|not completed|violated' "$3"; then verdict=ok; fi ;;
    broken)
      if grep -q 'errors: 1$' "$3" && grep 'assertion violated' "$3" | grep -qF -- "$2"; then verdict=refuted; fi ;;
    stuck)
      if grep -q 'errors: 1$' "$3" && grep -qF -- "$2" "$3"; then verdict=refuted; fi ;;
  esac
  echo "$verdict"
}

# ---- The models -----------------------------------------------------------------------------------

run_log() {
  echo "NC coordinators, 2; N slots, 4; LIVES of each, 2; CUTS of the server's power, 1; unless a line says otherwise"
  sound "the protocol"
  sound "three coordinators" -DNC=3 -DN=3 -DLIVES=1
  sound "five slots" -DN=5 -DLIVES=1
  sound "two power cuts" -DCUTS=2 -DLIVES=1
  sound "links are sent again" -DRESENT -DLIVES=1
  sound "a reader may see less than there is" -DSTALE -DCUTS=0
  sound "a reader may see less than there is, and a power cut" -DSTALE -DLIVES=1
  fair "somebody commits once faults have stopped" -DCALM -DLIVES=1
  broken "known<3" "(is an adopted generation that commits among the states?)" -DREACH

  local chain="who==want[r].prev" mine="who==want[c].who" lost="acked&(1<<k)"
  broken "$chain" "acts on a record that may not be on disk" -DNO_READER_SYNC -DLIVES=1
  broken "slot[(known-1)].kind!=0" "the same: what is acknowledged stands behind a hole" \
    -DNO_READER_SYNC -DORACLE=2 -DLIVES=1
  broken "acked&(1<<(known" "the same: two histories are acknowledged" -DNO_READER_SYNC -DORACLE=3 -DLIVES=1
  broken "$chain" "syncs what it read and does not read it again" -DNO_RECHECK -DLIVES=1
  broken "$chain" "syncs, then reads" -DSYNC_BEFORE_READ -DLIVES=1
  broken "$chain" "(the limit: two power cuts round a link that is sent again)" -DRESENT -DCUTS=2 -DLIVES=1
  broken "$lost" "no fsync before link" -DNO_FSYNC_BEFORE_LINK -DLIVES=1
  broken "$lost" "no fsync after link" -DNO_FSYNC_AFTER_LINK -DLIVES=1
  broken "$mine" "does not read back" -DNO_READ_BACK
  broken "$mine" "acknowledges before link" -DACK_BEFORE_LINK
  broken "$chain" "links to the first free slot" -DFIRST_FREE -DLIVES=1
  broken "violated 0 " "renames instead of linking" -DOVERWRITE
  broken "want[r].term==lead" "never steps down" -DNEVER_STEPS_DOWN -DLIVES=1
  broken "want[r].gen>last" "counts generations by itself" -DOWN_COUNTER -DLIVES=1
  broken "$mine" "takes a record of its former life for its own" -DSAME_HOLDER_IS_MINE
  broken "$mine" "takes EEXIST for success" -DEEXIST_IS_MINE
  stuck "never reads again after EEXIST" -DCALM -DLIVES=1 -DNEVER_READS_AGAIN
}

leases() {
  echo "NM members, 3; clocks off by 1 in DRIFT, 2; LC, 2, LS, 1, and LA, 1, are waited out by the least WL, WS, WA"
  local log=-DNO_SUPPORT support=-DNO_LOG_LEASE
  sound "support lease" $support
  sound "support lease, it outlasts the members'" $support -DNM=2 -DLS=2
  sound "support lease, the members' outlast it" $support -DNM=2 -DLA=2
  sound "support lease, drift of a third" $support -DNM=2 -DDRIFT=3
  sound "support lease, counted from the last stamp" $support -DNM=2 -DBY_AGE
  sound "support lease, counted from the last stamp" $support -DAT_ONCE -DBY_AGE
  sound "log lease" $log -DNM=2
  sound "log lease, drift of a third" $log -DNM=1 -DLC=1 -DDRIFT=3
  sound "both leases" -DNM=2 -DLC=1
  sound "both leases" -DAT_ONCE -DLC=1
  sound "no lease obeyed, but the barrier and a member that moved" \
    $support -DAT_ONCE -DMEMBER_IGNORES_LEASE -DBARRIER -DSOMEBODY_MOVED
  broken "state" "(is a hand-over without all members among the states?)" -DREACH $support

  local no="violated 0 "
  broken "$no" "WS one less" $support -DWS=2 -DWA=99
  broken "$no" "WS one less, drift of a third" $support -DNM=2 -DDRIFT=3 -DWS=1 -DWA=99
  broken "$no" "WS one less, counted from the last stamp" $support -DNM=2 -DBY_AGE -DWS=2 -DWA=99
  broken "$no" "WA one less" $support -DWA=2 -DWS=99
  broken "$no" "WL one less" $log -DNM=2 -DWL=5 -DWA=99
  broken "$no" "WL one less, drift of a third" $log -DNM=1 -DLC=1 -DDRIFT=3 -DWL=1 -DWA=99
  broken "$no" "waits for LC without drift" $log -DNM=2 -DWL=2 -DWA=99
  broken "$no" "waits for LS without drift" $support -DWS=1 -DWA=99
  broken "$no" "does not wait" $support -DNO_WAIT
  broken "$no" "member ignores its lease" $support -DMEMBER_IGNORES_LEASE
  broken "$no" "no lease obeyed, but the barrier" $support -DMEMBER_IGNORES_LEASE -DBARRIER
  broken "$no" "grants without authority" $support -DGRANTS_WITHOUT_AUTHORITY
  broken "$no" "grants past the end of its support" $support -DGRANTS_PAST_AUTHORITY
  broken "$no" "grants past the end of its log lease" $log -DNM=2 -DGRANTS_PAST_AUTHORITY
  broken "$no" "member's lease counted from the answer's receipt" $support -DLEASE_FROM_RECEIPT
  broken "$no" "log lease counted from the poll's receipt" $log -DNM=2 -DLOG_LEASE_FROM_RECEIPT
  broken "$no" "poll answered by a cache" $log -DNM=2 -DSTALE_POLL
  broken "$no" "support counted from the heartbeat's receipt" $support -DSUPPORT_FROM_RECEIPT
  broken "$no" "majority counted with duplicates" $support -DDUPLICATES_COUNT
  broken "$no" "waits for a minority to join" $support -DMINORITY_IS_ENOUGH
  broken "$no" "wait for support counted from LEAD" $support -DMAJORITY_FROM_LEAD
  broken "$no" "member that joined answers the older term" $support -DANSWERS_OLD_TERM
  broken "$no" "member moves and does not stop its ranks" $support -DMOVES_WITHOUT_STOPPING
  broken "$no" "member takes a lease of another generation" $support -DANSWER_OF_ANY_GENERATION
}

handovers() {
  echo "NM nodes, 2; NT terms, 3; NG generations, 3; HS 1, HA 1, HL 2; FIRST members of generation 1, all"
  local log=-DUSE_LOG support=-DUSE_SUPPORT
  sound "support lease" $support
  sound "support lease, longer" $support -DHS=2
  sound "support lease, a spare node" $support -DFIRST=1
  sound "support lease, three nodes" $support -DNM=3 -DNG=2
  sound "support lease, three nodes, two terms" $support -DNM=3 -DNT=2
  sound "log lease" $log
  sound "log lease, a spare node" $log -DFIRST=1
  sound "both leases" $log $support
  broken "highest<3" "(is the last generation's training among the states?)" -DREACH $support

  local two="gen[m]>=highest"
  broken "$two" "waits for the generation before, support" $support -DONLY_THE_LAST
  broken "$two" "waits for the generation before, log" $log -DONLY_THE_LAST
  broken "$two" "majority of the generation before only" $support -DMAJORITY_OF_THE_LAST -DFIRST=1
  broken "$two" "forgets leases that it gave itself" $log -DFORGETS_OWN_LEASES
  broken "$two" "adopts with members missing or elsewhere, support" $support -DADOPTS_WHOEVER_IS_THERE
  broken "$two" "adopts with members missing or elsewhere, log" $log -DADOPTS_WHOEVER_IS_THERE
  broken "$two" "adopts what was never opened, support" $support -DADOPTS_UNTOLD
  broken "$two" "adopts what was never opened, log" $log -DADOPTS_UNTOLD
  broken "$two" "member goes back to an older term" $support -DOLD_TERM_JOINS
}

# Every line but the first four is declared wrongly and must be found out.
self() {
  model=leases
  local small=(-DNM=2 -DNO_LOG_LEASE)
  sound "holds" "${small[@]}"
  broken "violated 0 " "does not hold" "${small[@]}" -DNO_WAIT
  model=run_log
  fair "goes on" -DN=3 -DCALM -DLIVES=1
  stuck "is stuck" -DN=3 -DCALM -DLIVES=1 -DNEVER_READS_AGAIN
  stuck "goes on" -DN=3 -DCALM -DLIVES=1
  fair "is stuck" -DN=3 -DCALM -DLIVES=1 -DNEVER_READS_AGAIN
  model=leases
  sound "does not hold" "${small[@]}" -DNO_WAIT
  broken "violated 0 " "holds" "${small[@]}"
  broken "another assertion" "does not hold" "${small[@]}" -DNO_WAIT
  DEPTH=50 sound "is cut short" "${small[@]}"
  sound "does not compile" "${small[@]}" "-DTick="
}

begin=$SECONDS
case "$*" in
  run_log.pml | leases.pml | handovers.pml) "$model" ;;
  --self) self ;;
  *) echo "usage: $0 run_log.pml|leases.pml|handovers.pml|--self" >&2; exit 2 ;;
esac
wait
for ((i = 0; i < count; ++i)); do
  cat "$work/$i.line" || echo "FAILED variant $i left no result"
done > "$work/lines"
cat "$work/lines"
failures=$(grep -c '^FAILED' "$work/lines" || true)
echo "$count variants in $((SECONDS - begin)) s, $failures failed"
if [[ $* == --self ]]; then
  found=$(awk '/^[a-zA-Z]/ { printf "%s ", $1 }' "$work/lines")
  [[ $found == "ok refuted ok refuted FAILED FAILED FAILED FAILED FAILED FAILED FAILED " ]] || { echo "a wrong verdict"; exit 1; }
  echo "all as they must be"
  exit 0
fi
((failures == 0))
