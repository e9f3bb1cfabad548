#!/usr/bin/env bash
# Runs the packet tests, the datapath's system tests and a lab of two nodes under Debian's kernels, in emulation:
# fleets run older kernels than the machine that Warren is built on.
#
#   deploy/kernels/run.sh              under 6.1 (bookworm: no TCX) and 6.12 (trixie)
#   deploy/kernels/run.sh 6.1          under one of them
#
# The last lines are one for each kernel: `6.1.0-50-cloud-amd64: N passed, N failed, N skipped`. Exit 1 if
# anything failed, or a kernel did not come to its end. Where a kernel lacks something, tests say `skipped: why`.
#
# What it needs (kernels, qemu, busybox, kmod) is fetched once (apt.sh says how) into target/kernels, where each
# kernel's console is kept as SERIES.log too; remove the folder for newer ones. Programs of this system (ip, nft,
# ping, etcd) and its libraries go into the image. Neither root nor KVM is needed; it takes minutes, on one CPU.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/../.."
. deploy/apt.sh
export PATH+=":/usr/sbin:/sbin"

# Debian's releases with these kernels.
declare -Ar SUITES=([6.1]=bookworm [6.12]=trixie)
readonly TOOLS=(qemu-system-x86 busybox-static kmod)
# Of the tests: what they and the programs start.
readonly PROGRAMS=(ip tc nft bpftool ethtool ping etcd etcdctl)
# Kernel modules that a network of machines may ask for; disks, graphics and real network cards are left out.
readonly MODULES=(net lib crypto arch/x86/crypto drivers/net/vxlan drivers/net/veth drivers/net/tun
    drivers/net/dummy drivers/net/geneve drivers/net/netkit drivers/net/macvlan drivers/net/bonding
    drivers/net/wireguard)
# As much for two agents and etcd as for the image itself, which lies in memory.
readonly MEMORY_MB=3072
# Measured: 25 minutes on two CPUs that eight others used; a third of it and less alone.
readonly LIMIT_S=3600
# In the checkout wherever cargo builds: one download for all target folders.
readonly FOLDER=$PWD/target/kernels

say() { printf 'kernels: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

# Moves a folder to its place in one step, so that nobody finds half of it; another run's may be there by now.
settle() { mv -T "$1" "$2" 2>/dev/null || [[ -d $2 ]] || die "cannot make $2"; }

# merged ROOT bin|lib: that folder's path, also where a release has packages put everything below /usr.
merged() {
    [[ -e $1/$2 ]] || ln -s "usr/$2" "$1/$2"
    echo "$1/$2"
}

fetch_tools() {
    [[ ! -d $FOLDER/tools ]] || return 0
    local suite work=$scratch/tools
    suite=$(debian_codename)
    say "fetching ${TOOLS[*]} of Debian $suite, with what they need"
    private_apt "$work/apt" "$suite" || die "no mirror to fetch from"
    apt-get -c "$work/apt/apt.conf" -qq -y --no-install-recommends --download-only --reinstall install \
        "${TOOLS[@]}" </dev/null >&2 || die "cannot download ${TOOLS[*]} of Debian $suite"
    unpack "$work/root" "$work"/apt/cache/archives/*.deb
    # kmod does what it is called.
    ln -s kmod "$(merged "$work/root" bin)/depmod"
    settle "$work/root" "$FOLDER/tools"
}

# The image package's name carries the exact release: ask the one that stands for the newest of the suite.
fetch_kernel() {
    local series=$1 package work=$scratch/$1
    [[ ! -d $FOLDER/$series ]] || return 0
    private_apt "$work/apt" "${SUITES[$series]}" || die "no mirror to fetch from"
    package=$(apt-cache -c "$work/apt/apt.conf" show linux-image-cloud-amd64 |
        sed -n "s/^Depends: \(linux-image-$series\.[^ ]*\).*/\1/p" | head -n 1)
    [[ -n $package ]] || die "Debian ${SUITES[$series]} has no kernel $series on this mirror"
    say "fetching $package"
    (cd "$work/apt" && apt-get -c apt.conf -qq download "$package" </dev/null >&2) || die "cannot download $package"
    unpack "$work/root" "$work"/apt/*.deb
    merged "$work/root" lib >/dev/null
    settle "$work/root" "$FOLDER/$series"
}

# How a program of the fetched tools is run: with the libraries that came with it.
readonly WITH_TOOLS=(env LD_LIBRARY_PATH="$FOLDER/tools/lib/x86_64-linux-gnu:$FOLDER/tools/usr/lib/x86_64-linux-gnu")

# Builds what will run, and writes `FOLDER/NAME PATH` of each program and test binary.
build() {
    cargo build --locked -p node-agent -p node-cli -p chaos-lab --message-format=json |
        jq -r 'select(.executable != null) | "bin/\(.target.name) \(.executable)"'
    cargo test --locked -p datapath-linux --lib --tests --no-run --message-format=json |
        jq -r 'select(.executable != null and .profile.test) | "tests/datapath-linux-\(.target.name) \(.executable)"'
}

# add_program IMAGE FROM TO: a program without its debug information, and the libraries that it is linked with.
add_program() {
    local image=$1 from=$2 to=$1$3 library
    mkdir -p "${to%/*}"
    strip --strip-debug -o "$to" "$from" 2>/dev/null || cp -L "$from" "$to"
    { ldd "$from" 2>/dev/null || true; } | sed -nE 's#.*(=> |^\s+)(/[^ ]+) \(.*#\2#p' | while read -r library; do
        [[ -e $image$library ]] || install -D "$library" "$image$library"
    done
}

# What every kernel's image has.
make_common() {
    local image=$1 program name path
    install -D "$FOLDER/tools/bin/busybox" "$image/bin/busybox"
    install -D deploy/kernels/init "$image/init"
    mkdir -p "$image/etc" "$image/warren/busybox"
    echo "root:x:0:0:root:/root:/bin/sh" >"$image/etc/passwd"
    echo "root:x:0:" >"$image/etc/group"
    ln -s busybox "$image/bin/sh"
    add_program "$image" "$FOLDER/tools/bin/kmod" /sbin/modprobe
    for program in "${PROGRAMS[@]}"; do
        path=$(command -v "$program") || die "no $program here: run deploy/setup.sh"
        add_program "$image" "$path" "/usr/bin/$program"
    done
    build | while read -r name path; do
        add_program "$image" "$path" "/warren/$name"
    done
}

# One file of the image and the kernel's modules, which the kernel unpacks into memory.
make_image() {
    local series=$1 root=$FOLDER/$1 image=$scratch/image release from module
    release=$(ls "$root/lib/modules")
    rm -rf "$image/lib/modules"
    for module in "${MODULES[@]}"; do
        from=$root/lib/modules/$release/kernel
        (cd "$from" && find "$module"* \( -name '*.ko' -o -name '*.ko.xz' \) ! -path '*ethernet*' 2>/dev/null || true) |
            while read -r path; do install -D "$from/$path" "$image/lib/modules/$release/kernel/$path"; done
    done
    find "$image/lib/modules" -name '*.ko.xz' -exec xz -d {} +
    cp "$root/lib/modules/$release"/modules.{builtin,builtin.modinfo,order} "$image/lib/modules/$release"
    "${WITH_TOOLS[@]}" "$FOLDER/tools/bin/depmod" -b "$image" "$release"
    (cd "$image" && find . | "$FOLDER/tools/bin/busybox" cpio -o -H newc 2>/dev/null) >"$scratch/image.cpio"
}

# Its console is our output. 6.12 wants what `max` promises and qemu 7.2 does not do: 57-bit addresses and
# cmpxchg16b crashed it.
boot() {
    local kernel
    kernel=$(ls "$FOLDER/$1"/boot/vmlinuz-*)
    nice timeout --foreground "$LIMIT_S" "${WITH_TOOLS[@]}" "$FOLDER/tools/usr/bin/qemu-system-x86_64" \
        -L "$FOLDER/tools/usr/share/qemu" -L "$FOLDER/tools/usr/share/seabios" \
        -accel tcg -cpu max,la57=off,cx16=off -smp 1 -m "$MEMORY_MB" -nic none -display none -monitor none \
        -serial stdio -no-reboot -kernel "$kernel" -initrd "$scratch/image.cpio" \
        -append "console=ttyS0 panic=-1 quiet" </dev/null | stdbuf -oL tr -d '\r'
}

main() {
    local series status=0 summary=() all=("$@")
    case ${1:-} in
    "") all=(6.1 6.12) ;;
    -*)
        sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
        [[ $1 == --help || $1 == -h ]] && exit 0 || exit 2
        ;;
    esac
    for series in "${all[@]}"; do
        [[ -n ${SUITES[$series]:-} ]] || die "no kernel $series here: there are ${!SUITES[*]}"
    done
    [[ $(uname -m) == x86_64 ]] || die "the kernels are for x86_64 only"
    check_apt || die "needs Debian's apt"
    mkdir -p "$FOLDER"
    scratch=$(mktemp -d "$FOLDER/run.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT

    fetch_tools
    for series in "${all[@]}"; do fetch_kernel "$series"; done
    make_common "$scratch/image"
    for series in "${all[@]}"; do
        make_image "$series"
        say "booting $series with an image of $(du -m "$scratch/image.cpio" | cut -f1) MB"
        boot "$series" | tee "$FOLDER/$series.log" || say "$series: qemu ended with an error, or after $LIMIT_S s"
        summary+=("$(awk -f deploy/kernels/judge.awk "$FOLDER/$series.log")") || status=1
    done
    echo
    printf '%s\n' "${summary[@]}"
    exit "$status"
}

main "$@"
