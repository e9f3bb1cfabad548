#!/usr/bin/env bash
# Brings etcd 3.5 beside the system's etcd, for tests: Debian 12 has 3.4 only, and fleets run newer ones.
#
#   deploy/etcd-3.5.sh        fetch it if it is not there; print the path of the program
#
# It is Debian trixie's package, from the mirror that the system's own apt sources name, checked by apt
# against Debian's keys. List, cache and configuration are private: the system's apt and its packages stay as
# they are, and no root is needed. etcd and etcdctl lie in target/etcd-3.5/usr/bin; removing the folder
# takes everything away. When it is there, neither the network nor the machine is touched.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."

readonly SUITE=trixie
readonly PACKAGES=(etcd-server etcd-client)
readonly SERIES=3.5
readonly KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
# In the checkout wherever cargo builds: one download for all target folders.
readonly FOLDER=$PWD/target/etcd-$SERIES

say() { printf 'etcd-%s: %s\n' "$SERIES" "$*" >&2; }
die() { say "$@"; exit 1; }

# The Debian mirrors of the system, one a line. Asked of apt, which knows both forms of its source files.
mirrors() {
    local codename
    codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    apt-get update --print-uris 2>/dev/null | sed -nE "s#^'(.*)/dists/($codename|stable)/InRelease'.*#\1#p" | sort -u
}

# Writes a configuration for apt that keeps everything it reads and writes below a folder.
write_apt_files() {
    local folder=$1 mirror
    mkdir -p "$folder/state/lists/partial" "$folder/cache/archives/partial"
    for mirror in $(mirrors); do
        # Neither descriptions nor component lists: one index is all it takes.
        echo "deb [signed-by=$KEYRING target=Packages] $mirror $SUITE main"
    done >"$folder/sources.list"
    # The hooks of the system's configuration work on the system's lists.
    cat >"$folder/apt.conf" <<END
Dir::Etc::SourceList "$folder/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State "$folder/state";
Dir::State::Status "/dev/null";
Dir::Cache "$folder/cache";
APT::Sandbox::User "root";
#clear APT::Update;
END
}

fetch() {
    local work=$1 package
    write_apt_files "$work/apt"
    [[ -s $work/apt/sources.list ]] || die "no Debian mirror among the system's apt sources"
    say "fetching ${PACKAGES[*]} of Debian $SUITE"
    # What is listed may be no mirror of Debian's; whether one answered shows in what can be downloaded.
    apt-get -c "$work/apt/apt.conf" -qq update </dev/null >&2 || say "a mirror did not answer; going on"
    (cd "$work/apt" && apt-get -c apt.conf -qq download "${PACKAGES[@]}" </dev/null >&2) ||
        die "cannot download ${PACKAGES[*]}: does the mirror of the system's apt sources have $SUITE?"
    for package in "$work"/apt/*.deb; do
        dpkg -x "$package" "$work/root"
    done
}

main() {
    if [[ $# -gt 0 ]]; then
        sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
        [[ $1 == --help || $1 == -h ]] && exit 0 || exit 2
    fi
    if [[ ! -x $FOLDER/usr/bin/etcd ]]; then
        command -v apt-get dpkg >/dev/null || die "needs apt; elsewhere give tests an etcd with WARREN_ETCD=PATH"
        [[ -e $KEYRING ]] || die "no $KEYRING (package debian-archive-keyring)"
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
