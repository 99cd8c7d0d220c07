#!/usr/bin/env bash
# Makes a fresh Debian 12 machine (as root) ready to build, test and run the lab. Each step does nothing when done.
#
#   tests/setup.sh [packages] [venv] [headers] [image] [kernels] [controlplane] [bench]     without arguments: all of them
#
# packages  the Debian packages below
# venv      $NETSTACK_CACHE/venv-<hash of tests/requirements.txt>, linked as .venv
# headers   kernel headers where bcc looks for them: Debian's, if this kernel came without its own
# image     the lab's node image (tests/lab/image.py)
# kernels   QEMU for both architectures; $NETSTACK_CACHE/kernel-<release>: the kernel that the image's headers belong to;
#           $NETSTACK_CACHE/tree-arm64-<hash>: the boards' architecture, kernel included (tests/kernel61)
# controlplane
#           $NETSTACK_CACHE/controlplane-<key>: etcd and Kubernetes' API server, controllers and scheduler, built with
#           Go (tests/lab/controlplane). Where there is no Go >= 1.21 it says so and builds nothing, and the tests that
#           need it are skipped; with CI or NETSTACK_REQUIRE_CONTROLPLANE set that is an error instead.
# bench     what figures are compared with, and the compiler of the load generator (tests/bench)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${NETSTACK_CACHE:-$HOME/.cache/netstack}

packages=(
    # building and loading the programs; the virtual environment (it sees Debian's bcc, which pip does not have)
    python3-bpfcc python3-venv python3-pip python3-yaml bpftool linux-headers-amd64
    # the lab: nodes, router, clients, failures
    busybox-static ca-certificates curl dnsmasq-base iproute2 iputils-arping iputils-ping mmdebstrap nftables
    openssh-client openssl procps socat systemd-container tcpdump util-linux
    # what integration tests run or look with
    bind9-dnsutils conntrack ethtool haproxy jq musl-tools netcat-openbsd
    # this repository
    git make shellcheck
)

install_missing() {
    local missing=() package
    for package; do
        [[ $(dpkg-query -W -f='${Status}' "$package" 2>/dev/null) == "install ok installed" ]] || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    echo "installing ${missing[*]}"
    # A package must not start its service on the machine that only borrows the program.
    local policy=/usr/sbin/policy-rc.d ours=
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' > "$policy"
        chmod 755 "$policy"
        ours=yes
    fi
    local failed=0
    export DEBIAN_FRONTEND=noninteractive
    # Lists may be absent or old, so a failed first try is followed by an update.
    apt-get install -qq -y --no-install-recommends "${missing[@]}" > /dev/null 2>&1 || {
        apt-get update -qq && apt-get install -qq -y --no-install-recommends "${missing[@]}" > /dev/null
    } || failed=1
    [[ -z $ours ]] || rm -f "$policy"
    return $failed
}

step_packages() {
    install_missing "${packages[@]}"
}

step_venv() {
    local key venv
    key=$(sha256sum "$root/tests/requirements.txt" | cut -c1-12)
    venv=$cache/venv-$key
    mkdir -p "$cache"
    exec {lock}> "$cache/venv.lock"
    flock "$lock"
    if [[ ! -e $venv/.complete ]]; then
        echo "making $venv"
        rm -rf "$venv"
        /usr/bin/python3 -m venv --system-site-packages "$venv"
        "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$root/tests/requirements.txt"
        touch "$venv/.complete"
    fi
    ln -sfn "$venv" "$root/.venv"
    exec {lock}>&-
}

step_headers() {
    local here debian
    here=/lib/modules/$(uname -r)
    [[ -e $here/build ]] && return 0
    debian=$(find /lib/modules -maxdepth 2 -name build -path '*-amd64/*' | sort -V | tail -n 1)
    if [[ -z $debian ]]; then
        echo "no kernel headers: $here/build is missing and linux-headers-amd64 is not installed" >&2
        return 1
    fi
    mkdir -p "$here"
    ln -sfn "$(readlink -f "$debian")" "$here/build"
    ln -sfn "$(readlink -f "$(dirname "$debian")/source")" "$here/source"
}

step_image() {
    cd "$root/tests"
    "$root/.venv/bin/python" -m lab image
}

# Debian's kernel as files: vmlinuz and the modules, with the headers where the image has them. Nothing is installed.
step_kernels() {
    local image release target
    install_missing qemu-system-x86 qemu-system-arm e2fsprogs kmod
    image=$(step_image)
    release=$(find "$image/usr/src" -maxdepth 1 -name 'linux-headers-6.1.*-amd64' -printf '%f\n' | sort -V | tail -n 1)
    release=${release#linux-headers-}
    target=$cache/kernel-$release
    exec {lock}> "$cache/kernels.lock"
    flock "$lock"
    if [[ ! -e $target ]]; then
        echo "fetching kernel $release"
        rm -rf "$target.new"
        mkdir -p "$target.new"
        cd "$target.new"
        apt-get download -qq "linux-image-$release" 2> /dev/null || {
            apt-get update -qq && apt-get download -qq "linux-image-$release"
        }
        dpkg-deb --fsys-tarfile linux-image-*.deb | tar -x ./boot ./lib/modules
        rm linux-image-*.deb
        ln -s "/usr/src/linux-headers-$release" "lib/modules/$release/build"
        ln -s "/usr/src/linux-headers-${release%-amd64}-common" "lib/modules/$release/source"
        depmod -b . "$release"
        mv "$target.new" "$target"
    fi
    exec {lock}>&-
    cd "$root/tests"
    "$root/.venv/bin/python" -m kernel61
}

step_controlplane() {
    cd "$root/tests"
    "$root/.venv/bin/python" -m lab.controlplane
}

step_bench() {
    install_missing gcc libc6-dev iptables keepalived dnsdist dnsperf nsd unbound
}

for step in "${@:-packages venv headers image kernels controlplane bench}"; do
    # the default is one word list, an argument one word
    for name in $step; do
        case $name in
        packages | venv | headers | image | kernels | controlplane | bench) "step_$name" ;;
        *)
            echo "usage: tests/setup.sh [packages] [venv] [headers] [image] [kernels] [controlplane] [bench]" >&2
            exit 2
            ;;
        esac
    done
done
