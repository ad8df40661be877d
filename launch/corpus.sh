#!/usr/bin/env bash
# Fetches real text in five languages from the Debian archive, for training and tests:
# manual pages, the Debian reference and LibreOffice's help in English, French, German, Spanish, Italian.
# Nothing is installed and no root is needed. The texts keep their licences (mostly GPL and MPL): see the `copyright`
# files under CACHE/unpacked. Do not redistribute them with a product.
set -euo pipefail

languages=(en fr de es it)

usage() {
  cat <<'END'
Usage: launch/corpus.sh [--small] [CACHE]

Downloads Debian packages (apt-get download), unpacks them (dpkg -x) and arranges
their text as CACHE/text/{en,fr,de,es,it}, ready for `perdure data build --from`.
A second call downloads only what is missing; an interrupted one may be repeated.

  --small   manual pages without the developers' sections, and the Debian reference:
            17 MB to download instead of 39
  CACHE     where to keep it all (default: ${XDG_CACHE_HOME:-~/.cache}/perdure/corpus)
END
}

say() { printf 'corpus: %s\n' "$*"; }
fail() {
  printf 'corpus: %s\n' "$*" >&2
  exit 1
}

small=no
cache=
for argument in "$@"; do
  case $argument in
    --small) small=yes ;;
    -h | --help) usage && exit 0 ;;
    -*) usage >&2 && exit 2 ;;
    *)
      [[ -z $cache ]] || { usage >&2 && exit 2; }
      cache=$argument
      ;;
  esac
done
if [[ -z $cache ]]; then
  [[ -n ${XDG_CACHE_HOME:-} || -n ${HOME:-} ]] || fail "neither XDG_CACHE_HOME nor HOME is set: name a folder, launch/corpus.sh FOLDER"
  cache=${XDG_CACHE_HOME:-$HOME/.cache}/perdure/corpus
fi
for tool in apt-get dpkg flock; do
  command -v "$tool" > /dev/null || fail "$tool not found: this needs Debian or Ubuntu; on other systems give your own text to \`perdure data build --from\`"
done
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)

# One call at a time on one cache.
exec 9> "$cache/.lock"
flock -n 9 || fail "another corpus.sh works on $cache: wait for it, or name another folder"

# The packages of one language, a line each.
packages() {
  local suffix=-$1 help=$1
  [[ $1 == en ]] && suffix='' && help=en-us
  printf '%s\n' "manpages$suffix" "debian-reference-$1"
  [[ $small == yes ]] || printf '%s\n' "manpages$suffix-dev" "libreoffice-help-$help"
}

# download PACKAGE: into CACHE/deb, under its final name only when complete.
download() {
  local partial=$cache/deb/.partial-$1 log
  rm -rf "$partial"
  mkdir -p "$partial"
  local options=(-q)
  # As root apt would switch to the user _apt, which may not write here.
  [[ $(id -u) -ne 0 ]] || options+=(-o APT::Sandbox::User=root)
  if ! log=$(cd "$partial" && apt-get "${options[@]}" download "$1" 2>&1); then
    rm -rf "$partial"
    printf '%s\n' "$log" | tail -n 3 >&2
    fail "apt could not download $1. Offline? Lists missing or old (sudo apt-get update)? What is already in $cache/deb stays; repeat the call later"
  fi
  mv "$partial"/*.deb "$cache/deb/"
  rm -rf "$partial"
}

# The path of a downloaded package, or nothing.
downloaded() {
  local file
  for file in "$cache/deb/$1"_*.deb; do
    [[ -f $file ]] && printf '%s\n' "$file" && return
  done
}

# fetch PACKAGE: CACHE/unpacked/PACKAGE, complete or absent.
fetch() {
  local unpacked=$cache/unpacked/$1 file
  [[ -d $unpacked ]] && return
  if [[ -z $(downloaded "$1") ]]; then download "$1"; fi
  file=$(downloaded "$1")
  say "unpack $(basename "$file") ($(($(stat -c %s "$file") / 1024)) KiB)"
  rm -rf "$unpacked.partial"
  if ! dpkg -x "$file" "$unpacked.partial"; then
    rm -rf "$file" "$unpacked.partial"
    fail "$file is damaged and was removed: repeat the call"
  fi
  mv "$unpacked.partial" "$unpacked"
}

# arrange FROM TO PATTERN: the regular files of FROM that match, as hard links (else copies) under TO.
arrange() {
  [[ -d $1 ]] || fail "$1 is missing: the package has another shape than expected. Remove $cache/unpacked and repeat; if it stays, the text has to be taken by hand"
  mkdir -p "${2%/*}"
  if ! cp -rlP "$1" "$2" 2> /dev/null; then
    rm -rf "$2"
    cp -rP "$1" "$2"
  fi
  find "$2" ! -type d '(' ! -type f -o ! -name "$3" ')' -delete
}

arrange_language() {
  local language=$1 to=$2/$1 unpacked=$cache/unpacked
  local suffix=-$language help=$language man_folder=/$language package section
  [[ $language == en ]] && suffix='' && help=en-us && man_folder=''
  for package in "manpages$suffix" "manpages$suffix-dev"; do
    [[ $package == *-dev && $small == yes ]] && continue
    for section in "$unpacked/$package/usr/share/man$man_folder"/man*/; do
      section=${section%/}
      arrange "$section" "$to/$package/${section##*/}" '*.gz'
    done
  done
  arrange "$unpacked/debian-reference-$language/usr/share/debian-reference" "$to/debian-reference" "*.$language.html"
  [[ $small == yes ]] || arrange "$unpacked/libreoffice-help-$help/usr/share/libreoffice/help/${help/us/US}/text" "$to/libreoffice-help" '*.html'
}

mkdir -p "$cache/deb" "$cache/unpacked"
all=()
for language in "${languages[@]}"; do
  while read -r package; do all+=("$package"); done < <(packages "$language")
done
count=0
for package in "${all[@]}"; do
  count=$((count + 1))
  [[ -d $cache/unpacked/$package ]] || say "[$count/${#all[@]}] fetch $package"
  fetch "$package"
done

# The text folder is built aside and put in place whole, so that it always is what the last call asked for.
rm -rf "$cache/text.partial"
mkdir "$cache/text.partial"
for language in "${languages[@]}"; do arrange_language "$language" "$cache/text.partial"; done
rm -rf "$cache/text"
mv "$cache/text.partial" "$cache/text"
for language in "${languages[@]}"; do
  say "$cache/text/$language: $(find "$cache/text/$language" -type f | wc -l) files, $(du -s --block-size=1M "$cache/text/$language" | cut -f1) MB on disk"
done
say "next: perdure data build --from $cache/text/fr --tokenizer byte -o fr"
