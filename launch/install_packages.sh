#!/usr/bin/env bash
# Installs the Debian 12 packages that building, testing and the quickstart need. Does nothing when they are all there.
set -euo pipefail

packages=(
  g++ cmake ninja-build ccache pkg-config
  libabsl-dev libcli11-dev libtomlplusplus-dev nlohmann-json3-dev libfmt-dev
  libxxhash-dev libsodium-dev zlib1g-dev libsentencepiece-dev
  libdnnl-dev libhdf5-dev libucx-dev libfabric-dev
  libgtest-dev libgmock-dev libbenchmark-dev spin ca-certificates
)

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null || true)
  [[ $status == ii* ]] || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
  echo "packages: all ${#packages[@]} are installed"
  exit 0
fi

as_root=()
if ((EUID != 0)); then
  command -v sudo >/dev/null || {
    echo "packages missing: ${missing[*]}" >&2
    echo "neither root nor sudo is at hand; ask an administrator to install them with apt-get" >&2
    exit 1
  }
  as_root=(sudo)
fi
echo "packages: installing ${missing[*]}"
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
echo "packages: installed"
