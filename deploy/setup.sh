#!/usr/bin/env bash
# Installs what building and testing Warren needs on Debian 12 and newer, and only what is missing.
#
#   deploy/setup.sh           install what is missing (root for packages and mounts)
#   deploy/setup.sh --check   say what is missing; exit 1 if anything is
#
# Safe to repeat. When nothing is missing it touches neither the network nor the machine, and takes well
# under a second. Rust itself (cargo, rustfmt, clippy, 1.95 or newer) is expected to be there.
set -euo pipefail
export LC_ALL=C
PATH+=":/usr/local/sbin:/usr/sbin:/sbin:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin"

readonly BPF_TARGET=bpfel-unknown-none
# Tried with LLVM 21 to 23; a newer one may need a newer Rust than Debian's.
readonly BPF_LINKER_VERSION=0.13.0
readonly BPF_PACKAGES=(rustc-web libstd-rust-web-dev-bpf)

# What must be there (a command, or a file) and the Debian package that brings it.
readonly NEEDS="
cc                              gcc
make                            make
protoc                          protobuf-compiler
/usr/include/google/protobuf/descriptor.proto  libprotobuf-dev
/usr/include/zstd.h             libzstd-dev
/usr/include/zlib.h             zlib1g-dev
etcd                            etcd-server
etcdctl                         etcd-client
ip                              iproute2
nft                             nftables
iptables-restore                iptables
tcpdump                         tcpdump
bpftool                         bpftool
ethtool                         ethtool
ping                            iputils-ping
curl                            curl
jq                              jq
wrk                             wrk
python3                         python3
setpriv                         util-linux
ps                              procps
/etc/ssl/certs/ca-certificates.crt  ca-certificates
"

say() { printf 'setup: %s\n' "$*"; }
have() { if [[ $1 == /* ]]; then [[ -e $1 ]]; else command -v "$1" >/dev/null; fi; }

# The compiler that datapath-linux's build script will take for the kernel programs: one with a prebuilt
# core for the target, else rustup's nightly with the library source. Prints nothing when there is none.
bpf_rustc() {
    local rustc libdir
    for rustc in "${BPF_RUSTC:-}" rustc /usr/bin/rustc; do
        [[ -n $rustc ]] && have "$rustc" || continue
        libdir=$("$rustc" --print target-libdir --target "$BPF_TARGET" 2>/dev/null) || continue
        if compgen -G "$libdir/libcore-*" >/dev/null; then
            echo "$rustc"
            return
        fi
    done
    for rustc in "${BPF_RUSTC:-}" "${RUSTUP_HOME:-${HOME:-/root}/.rustup}/toolchains/nightly-$(uname -m)"-*/bin/rustc; do
        [[ -n $rustc ]] && have "$rustc" || continue
        if [[ -d $("$rustc" --print sysroot)/lib/rustlib/src/rust/library/core ]]; then
            echo "$rustc"
            return
        fi
    done
}

# The LLVM major that a rustc emits: the linker's must be the same.
llvm_major() { "$1" -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p'; }

linker_fits() {
    local linker libraries
    linker=$(command -v bpf-linker) || return 1
    [[ $("$linker" --version 2>/dev/null) == "bpf-linker $BPF_LINKER_VERSION" ]] || return 1
    libraries=$(ldd "$linker") || return 1
    # Linked statically it carries its LLVM, and its builder chose it.
    [[ $libraries != *libLLVM* || $libraries == *"libLLVM.so.$1"* ]]
}

has_mount() { grep -q "^[^ ]* $1 $2 " /proc/mounts; }
has_cgroup2() { grep -q '^[^ ]* [^ ]* cgroup2 ' /proc/mounts; }

# Fills `packages` (to install), `rustc`, `major`, `linker` (yes: to build) and `mounts` with what is missing now.
look() {
    local need package
    packages=() mounts=() linker="" major=""
    while read -r need package; do
        [[ -z $need ]] || have "$need" || packages+=("$package")
    done <<<"$NEEDS"
    rustc=$(bpf_rustc)
    if [[ -z $rustc ]]; then
        packages+=("${BPF_PACKAGES[@]}")
        linker=yes
    else
        major=$(llvm_major "$rustc")
        if ! linker_fits "$major"; then
            linker=yes
            if [[ -z ${LLVM_PREFIX:-} ]]; then
                have "/usr/lib/llvm-$major/bin/llvm-config" || packages+=("llvm-$major-dev")
                compgen -G "/usr/lib/llvm-$major/lib/libPolly*" >/dev/null || packages+=("libpolly-$major-dev")
                # LLVM is C++: its libraries are linked with the C++ compiler's runtime.
                have c++ || packages+=(g++)
            fi
        fi
    fi
    has_mount /sys/fs/bpf bpf || mounts+=("mount -t bpf bpf /sys/fs/bpf")
    has_cgroup2 || mounts+=("mkdir -p /sys/fs/cgroup/unified" "mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified")
}

nothing_missing() { [[ ${#packages[@]} -eq 0 && ${#mounts[@]} -eq 0 && -z $linker ]] && have cargo; }

# The commands that would bring what `look` found missing, for reading or for pasting.
commands() {
    [[ ${#packages[@]} -eq 0 ]] || printf 'apt-get update && apt-get install -y --no-install-recommends %s\n' "${packages[*]}"
    [[ -z $linker ]] || linker_command "${major:-<LLVM major of rustc -vV>}"
    [[ ${#mounts[@]} -eq 0 ]] || printf '%s\n' "${mounts[@]}"
    have cargo || echo "rustup-init -y   # or another way to Rust 1.95 or newer with rustfmt and clippy"
}

linker_command() {
    echo "LLVM_PREFIX=${LLVM_PREFIX:-/usr/lib/llvm-$1} cargo install bpf-linker --version $BPF_LINKER_VERSION" \
        "--locked --no-default-features --features llvm-$1"
}

# Leaves out of `packages` those that this Debian does not have.
keep_available() {
    local package known=()
    for package in "${packages[@]}"; do
        if apt-cache show --no-all-versions "$package" >/dev/null 2>&1; then
            known+=("$package")
        else
            say "there is no package $package here: are this release's security updates among the apt sources?"
        fi
    done
    packages=("${known[@]}")
}

# Debian's etcd-server starts a service. Warren's tests start their own members, so the service of a package
# that we bring is neither started nor left enabled; one that was there before is not touched.
install_packages() {
    local policy=/usr/sbin/policy-rc.d
    keep_available
    [[ ${#packages[@]} -gt 0 ]] || return 0
    say "packages: ${packages[*]}"
    if [[ " ${packages[*]} " == *" etcd-server "* && ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        trap "rm -f $policy" EXIT
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" </dev/null >/dev/null
    if [[ " ${packages[*]} " == *" etcd-server "* ]]; then
        rm -f "$policy"
        [[ ! -d /run/systemd/system ]] || systemctl disable --quiet --now etcd
    fi
}

main() {
    case ${1:-} in
    "") ;;
    --check) local check=yes ;;
    *)
        sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
        [[ $1 == --help || $1 == -h ]] && exit 0 || exit 2
        ;;
    esac

    look
    if nothing_missing; then
        say "nothing is missing (kernel programs: $rustc, LLVM $major)"
        exit 0
    fi
    if [[ -n ${check:-} ]]; then
        say "missing; these commands would bring it:"
        commands
        exit 1
    fi
    if [[ $EUID -ne 0 && (${#packages[@]} -gt 0 || ${#mounts[@]} -gt 0) ]]; then
        say "run this as root, or run these commands (all but cargo as root):"
        commands
        exit 1
    fi

    if [[ ${#packages[@]} -gt 0 ]]; then
        have apt-get || { say "no apt-get here; install the like of: ${packages[*]}"; exit 1; }
        say "reading package lists"
        # A broken foreign source must not stop us; whether ours answered shows in what can be installed.
        apt-get update -qq </dev/null || say "apt-get update failed in part; going on"
        install_packages
        # Only with its compiler there is the LLVM that the linker needs known.
        look
        install_packages
        look
    fi
    if [[ -n $linker && -n $major ]] && have cargo; then
        say "bpf-linker $BPF_LINKER_VERSION for LLVM $major, from source (a minute or two)"
        (cd / && LLVM_PREFIX=${LLVM_PREFIX:-/usr/lib/llvm-$major} cargo install bpf-linker --quiet --force \
            --version "$BPF_LINKER_VERSION" --locked --no-default-features --features "llvm-$major" </dev/null)
    fi
    if [[ ${#mounts[@]} -gt 0 ]]; then
        local mount
        for mount in "${mounts[@]}"; do
            say "$mount"
            $mount || say "could not: tests that need it will say 'skipped'"
        done
    fi

    look
    mounts=()
    if nothing_missing; then
        say "done (kernel programs: $rustc, LLVM $major)"
        exit 0
    fi
    if [[ -z $rustc ]]; then
        say "no compiler for the kernel programs; with rustup: rustup toolchain install nightly --component rust-src"
    fi
    say "still missing:"
    commands
    exit 1
}

main "$@"
