#!/usr/bin/env bash
# Brings etcd 3.5 beside the system's etcd, for tests: Debian 12 has 3.4 only, and fleets run newer ones.
#
#   deploy/etcd-3.5.sh        fetch it if it is not there; print the path of the program
#
# It is Debian trixie's package (apt.sh says how it comes here). etcd and etcdctl lie in
# target/etcd-3.5/usr/bin; removing the folder takes everything away. When it is there, neither the network nor
# the machine is touched.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."
. deploy/apt.sh

readonly SUITE=trixie
readonly PACKAGES=(etcd-server etcd-client)
readonly SERIES=3.5
# In the checkout wherever cargo builds: one download for all target folders.
readonly FOLDER=$PWD/target/etcd-$SERIES

say() { printf 'etcd-%s: %s\n' "$SERIES" "$*" >&2; }
die() { say "$@"; exit 1; }

fetch() {
    local work=$1
    say "fetching ${PACKAGES[*]} of Debian $SUITE"
    private_apt "$work/apt" "$SUITE" || die "no mirror to fetch from"
    (cd "$work/apt" && apt-get -c apt.conf -qq download "${PACKAGES[@]}" </dev/null >&2) ||
        die "cannot download ${PACKAGES[*]}: does the mirror of the system's apt sources have $SUITE?"
    unpack "$work/root" "$work"/apt/*.deb
}

main() {
    if [[ $# -gt 0 ]]; then
        sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
        [[ $1 == --help || $1 == -h ]] && exit 0 || exit 2
    fi
    if [[ ! -x $FOLDER/usr/bin/etcd ]]; then
        check_apt || die "needs Debian's apt; elsewhere give tests an etcd with WARREN_ETCD=PATH"
        mkdir -p "${FOLDER%/*}"
        work=$(mktemp -d "$FOLDER.XXXXXX")
        trap 'rm -rf "$work"' EXIT
        fetch "$work"
        local version
        version=$("$work/root/usr/bin/etcd" --version) || die "$SUITE's etcd does not run on this system"
        [[ $version == "etcd Version: $SERIES."* ]] || die "$SUITE has another etcd: ${version%%$'\n'*}"
        # In one step, so that nobody finds half of it; somebody else's may be there by now.
        mv -T "$work/root" "$FOLDER" 2>/dev/null || [[ -x $FOLDER/usr/bin/etcd ]] || die "cannot make $FOLDER"
    fi
    echo "$FOLDER/usr/bin/etcd"
}

main "$@"
