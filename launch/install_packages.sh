#!/usr/bin/env bash
# Installs the Debian 12 packages that building and the quickstart need. Does nothing when they are all there.
#   launch/install_packages.sh         what everybody needs
#   launch/install_packages.sh tests   and what only tests need: a scheduler, a model checker, a checker of scripts
set -euo pipefail

packages=(
  g++ cmake ninja-build ccache pkg-config
  libabsl-dev libcli11-dev libtomlplusplus-dev nlohmann-json3-dev libfmt-dev
  libxxhash-dev libsodium-dev zlib1g-dev libsentencepiece-dev
  libdnnl-dev libhdf5-dev libucx-dev libfabric-dev
  prometheus-cpp-dev libmicrohttpd-dev
  libgtest-dev libgmock-dev libbenchmark-dev ca-certificates
)
# Tests start daemons of their own; the machine's must not run for their sake.
daemons=(munge slurmctld slurmd prometheus)
case "${1:-}" in
  "") ;;
  tests) packages+=(spin shellcheck curl openssl python3 slurm-client "${daemons[@]}") ;;
  *) echo "usage: launch/install_packages.sh [tests]" >&2; exit 2 ;;
esac

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

# Debian starts a daemon when its package is installed, unless policy-rc.d forbids it, and again at every boot, unless
# it is disabled. A policy that is there is the administrator's and stays; ours is there while apt-get runs. Daemons that
# were installed before are nobody's business here, and what is disabled can be enabled: masking would be in the way of
# whoever wants munge later.
policy=/usr/sbin/policy-rc.d
new_daemons=()
for daemon in "${daemons[@]}"; do
  [[ " ${missing[*]} " != *" $daemon "* ]] || new_daemons+=("$daemon")
done
if ((${#new_daemons[@]} > 0)) && [[ ! -e $policy ]]; then
  trap '"${as_root[@]}" rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
  "${as_root[@]}" chmod 755 "$policy"
fi

echo "packages: installing ${missing[*]}"
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
for daemon in "${new_daemons[@]}"; do
  "${as_root[@]}" update-rc.d "$daemon" disable >/dev/null ||
    echo "packages: $daemon is installed and may start at the next boot: update-rc.d $daemon disable" >&2
done
echo "packages: installed"
