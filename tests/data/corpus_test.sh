#!/usr/bin/env bash
# launch/corpus.sh against an archive made here: what it arranges, that it resumes, what it says when it cannot go on.
set -euo pipefail

script=$1
for tool in dpkg-deb dpkg apt-get flock; do
  command -v "$tool" > /dev/null || { echo "skipped: no $tool"; exit 77; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0

check() { # check WHAT COMMAND...
  local what=$1
  shift
  if "$@" > "$work/check.log" 2>&1; then
    echo "ok: $what"
  else
    echo "FAILED: $what"
    cat "$work/check.log" "$work/out" 2> /dev/null || true
    failures=$((failures + 1))
  fi
}
says() { grep -q -- "$1" "$work/out"; }
corpus() { # Sets $code; what was printed is in $work/out.
  code=0
  PATH=$work/bin:$PATH APT_LOG=$work/apt.log APT_FAIL=${APT_FAIL:-} "$script" "$@" > "$work/out" 2>&1 || code=$?
}
downloads() { wc -l < "$work/apt.log"; }

# An apt-get that makes the package it is asked for, or fails at the one named by APT_FAIL.
mkdir -p "$work/bin"
cat > "$work/bin/apt-get" << 'END'
#!/usr/bin/env bash
set -euo pipefail
package=${*: -1}
[[ "$*" == *download* ]]
echo "$package" >> "$APT_LOG"
if [[ $package == "$APT_FAIL" ]]; then
  touch "${package}_1_all.deb" # Cut off.
  echo "E: Unable to locate package $package" >&2
  exit 100
fi
tree=$(mktemp -d)
language=${package##*-}
case $package in
  manpages-dev) folder=usr/share/man/man2 ;;
  manpages) folder=usr/share/man/man1 ;;
  manpages-*-dev) language=${package%-dev} && folder=usr/share/man/${language#manpages-}/man3 ;;
  manpages-*) folder=usr/share/man/$language/man1 ;;
  debian-reference-*) folder=usr/share/debian-reference ;;
  libreoffice-help-en-us) folder=usr/share/libreoffice/help/en-US/text/shared ;;
  libreoffice-help-*) folder=usr/share/libreoffice/help/$language/text/shared ;;
esac
mkdir -p "$tree/DEBIAN" "$tree/$folder" "$tree/usr/share/doc/$package"
printf 'Package: %s\nVersion: 1\nArchitecture: all\nMaintainer: nobody <n@example.org>\nDescription: test\n' "$package" > "$tree/DEBIAN/control"
echo licence > "$tree/usr/share/doc/$package/copyright"
case $package in
  manpages*) echo ".TH $package 1" | gzip -n > "$tree/$folder/page.1.gz" && ln -s page.1.gz "$tree/$folder/alias.1.gz" ;;
  debian-reference-*) echo "<html>$package</html>" > "$tree/$folder/ch01.$language.html" && touch "$tree/$folder/logo.png" "$tree/$folder/ch01.xx.html" ;;
  *) echo "<html>$package</html>" > "$tree/$folder/help.html" && touch "$tree/$folder/contents.js" ;;
esac
dpkg-deb --root-owner-group -b "$tree" "${package}_1_all.deb" > /dev/null
rm -rf "$tree"
END
chmod +x "$work/bin/apt-get"
: > "$work/apt.log"

files() { (cd "$1" && find . ! -type d | sort); }
small_fr='./debian-reference/ch01.fr.html
./manpages-fr/man1/page.1.gz'
full_fr='./debian-reference/ch01.fr.html
./libreoffice-help/shared/help.html
./manpages-fr-dev/man3/page.1.gz
./manpages-fr/man1/page.1.gz'

corpus --small "$work/cache with space"
text="$work/cache with space/text"
check "--small ends well" test "$code" -eq 0
check "--small fetches ten packages" test "$(downloads)" -eq 10
check "--small arranges manual pages and the reference" test "$(files "$text/fr")" == "$small_fr"
check "English lies in its own folder" test -f "$text/en/manpages/man1/page.1.gz"
check "it says what comes next" says "perdure data build --from"

corpus --small "$work/cache with space"
check "a second call ends well" test "$code" -eq 0
check "a second call downloads nothing" test "$(downloads)" -eq 10

APT_FAIL=manpages-de-dev corpus "$work/cache with space"
check "a failed download ends with 1" test "$code" -eq 1
check "it names the package" says "could not download manpages-de-dev"
check "it shows what apt said" says "Unable to locate package"
check "it names the remedy" says "apt-get update"
check "the text of the call before stays" test "$(files "$text/fr")" == "$small_fr"
APT_FAIL='' corpus "$work/cache with space"
check "a repeated call goes on" test "$code" -eq 0
check "it downloads the missing packages only" test "$(downloads)" -eq 21 # One of them failed.
check "the full corpus has all parts" test "$(files "$text/fr")" == "$full_fr"
check "so has English" test -f "$text/en/libreoffice-help/shared/help.html"
corpus --small "$work/cache with space"
check "--small after the full corpus is small again" test "$(files "$text/fr")" == "$small_fr"

rm -rf "$work/cache with space/unpacked/manpages"
echo damaged > "$work/cache with space/deb/manpages_1_all.deb"
corpus --small "$work/cache with space"
check "a damaged package ends with 1" test "$code" -eq 1
check "it says so" says "damaged and was removed"
corpus --small "$work/cache with space"
check "the next call mends it" test "$code" -eq 0

rm -rf "$work/cache with space/unpacked/debian-reference-es/usr"
corpus --small "$work/cache with space"
check "a package of another shape ends with 1" test "$code" -eq 1
check "it names the folder" says "debian-reference-es/usr/share/debian-reference is missing"

(
  exec 8> "$work/cache with space/.lock"
  flock 8
  corpus --small "$work/cache with space"
  test "$code" -eq 1 && says "another corpus.sh"
) && locked=yes || locked=no
check "a second call at the same time is refused" test "$locked" == yes

corpus --nonsense
check "an unknown option ends with 2" test "$code" -eq 2
corpus one two
check "two folders end with 2" test "$code" -eq 2
corpus --help
check "--help ends with 0" test "$code" -eq 0
check "--help shows the usage" says "Usage: launch/corpus.sh"
XDG_CACHE_HOME='' HOME='' corpus
check "no home at all ends with 1" test "$code" -eq 1
XDG_CACHE_HOME=$work/xdg corpus --small
check "the default lies in XDG_CACHE_HOME" test -d "$work/xdg/perdure/corpus/text/it"

echo "$failures failed"
exit "$((failures > 0))"
