# Packages of other Debian releases beside the system's own, for tests; to be sourced (`. deploy/apt.sh`).
#
# They come from the mirror that the system's own apt sources name, checked by apt against Debian's keys. List,
# cache and configuration are private: the system's apt and its packages stay as they are, and no root is needed.

readonly APT_KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

# What `private_apt` needs of the system; says what is missing.
check_apt() {
    if ! { command -v apt-get && command -v dpkg; } >/dev/null; then
        echo "no apt here" >&2
        return 1
    fi
    if [[ ! -e $APT_KEYRING ]]; then
        echo "no $APT_KEYRING (package debian-archive-keyring)" >&2
        return 1
    fi
}

debian_codename() { sed -n 's/^VERSION_CODENAME=//p' /etc/os-release; }

# The Debian mirrors of the system, one a line. Asked of apt, which knows both forms of its source files.
debian_mirrors() {
    apt-get update --print-uris 2>/dev/null |
        sed -nE "s#^'(.*)/dists/($(debian_codename)|stable)/InRelease'.*#\1#p" | sort -u
}

# private_apt FOLDER SUITE...: makes FOLDER/apt.conf, for `apt-get -c`, which knows these suites; whatever apt
# reads and writes with it lies in FOLDER, but for the list of installed packages, which is the system's.
private_apt() {
    local folder=$1 mirror suite
    shift
    mkdir -p "$folder/state/lists/partial" "$folder/cache/archives/partial"
    for mirror in $(debian_mirrors); do
        for suite in "$@"; do
            # Neither descriptions nor component lists: one index is all it takes.
            echo "deb [signed-by=$APT_KEYRING target=Packages] $mirror $suite main"
        done
    done >"$folder/sources.list"
    if [[ ! -s $folder/sources.list ]]; then
        echo "no Debian mirror among the system's apt sources" >&2
        return 1
    fi
    # The hooks of the system's configuration work on the system's lists.
    cat >"$folder/apt.conf" <<END
Dir::Etc::SourceList "$folder/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State "$folder/state";
Dir::State::Status "/var/lib/dpkg/status";
Dir::Cache "$folder/cache";
APT::Sandbox::User "root";
#clear APT::Update;
END
    # What is listed may be no mirror of Debian's; whether one answered shows in what can be downloaded.
    apt-get -c "$folder/apt.conf" -qq update </dev/null >&2 || echo "a mirror did not answer; going on" >&2
}

# unpack FOLDER PACKAGE_FILE...: the packages' files below a folder; nothing of theirs is run.
unpack() {
    local folder=$1 package
    shift
    for package in "$@"; do
        dpkg -x "$package" "$folder"
    done
}
