#!/usr/bin/env bash
# The datasets that run.toml beside this file mixes, from a folder that has one entry for each of them.
set -euo pipefail

usage() {
  cat <<'END'
Usage: launch/recipes/lucie/data.sh RAW OUT TOKENIZER

For each source of run.toml (lucie/en, lucie/fr, ...) RAW has either
  en.bin and en.idx   a dataset as Megatron makes it, which is linked to; or
  en/                 a folder of texts, of which `perdure data build` makes one.
OUT is what `perdure submit --data-dir` is given: it gets OUT/lucie/en.bin, OUT/lucie/en.idx, ...
A dataset that is there already is kept, so an interrupted call may be repeated.

  TOKENIZER   a SentencePiece .model file, or byte; unused where RAW has no texts

PERDURE names the command, if it is not in PATH.
END
}

say() { printf 'lucie/data: %s\n' "$*"; }
fail() {
  printf 'lucie/data: %s\n' "$*" >&2
  exit 1
}

[[ ${1:-} != -h && ${1:-} != --help ]] || { usage && exit 0; }
[[ $# == 3 ]] || { usage >&2 && exit 2; }
raw=$(realpath "$1")
out=$2
tokenizer=$3
perdure=${PERDURE:-perdure}
recipe=$(dirname "$(realpath "$0")")/run.toml

mapfile -t sources < <(sed -n 's/.*{ path = "\([^"]*\)".*/\1/p' "$recipe")
[[ ${#sources[@]} -gt 0 ]] || fail "$recipe names no sources"

# All that is missing is said before hours are spent on the rest.
missing=
for source in "${sources[@]}"; do
  name=${source##*/}
  [[ -e $out/$source.idx || -e $raw/$name.idx || -d $raw/$name ]] || missing+=" $name"
done
[[ -z $missing ]] || fail "$raw has neither a dataset (NAME.idx) nor a folder of texts for:$missing"

for source in "${sources[@]}"; do
  name=${source##*/}
  mkdir -p "$(dirname "$out/$source")"
  if [[ -e $out/$source.idx ]]; then
    say "$source is there"
  elif [[ -e $raw/$name.idx ]]; then
    [[ -e $raw/$name.bin ]] || fail "$raw/$name.idx has no $name.bin beside it"
    # The index last: it is what says that a dataset is there.
    ln -sf "$raw/$name.bin" "$out/$source.bin"
    ln -sf "$raw/$name.idx" "$out/$source.idx"
    say "$source is $raw/$name"
  else
    say "$source is built from $raw/$name"
    "$perdure" data build --from "$raw/$name" --tokenizer "$tokenizer" -o "$out/$source" </dev/null
  fi
done
