#!/bin/sh
# Debian package of some architecture -> unpacked into a folder, by apt-get and dpkg-deb, without root and without touching
# what is installed or configured here.
#     fetch.sh ARCHITECTURE PACKAGE FOLDER     e.g. fetch.sh armel zlib1g-dev build/zlib/armel
# PACKAGE may be a pattern of apt-cache (search by name), of which the last match counts: '^linux-image-.*-rpi$'
set -eu
architecture=$1 package=$2 folder=$3
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || {
    echo "fetch.sh: needs apt-get and dpkg-deb, as Debian has them, to get $package for $architecture" >&2
    exit 2
}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
: >"$work/status"
apt() {
    tool=$1
    shift
    "apt-$tool" -o APT::Architecture="$architecture" -o APT::Architectures="$architecture" -o Dir::State="$work" \
        -o Dir::State::status="$work/status" -o Dir::Cache="$work/cache" -o Acquire::Languages=none \
        -o APT::Sandbox::User= "$@"
}
cd "$work"
apt get -qq update
case $package in
*[\^\$*]*) package=$(apt cache search --names-only "$package" | cut -d' ' -f1 | sort -V | tail -n 1) ;;
esac
apt get -qq download "$package"
dpkg-deb -x ./*.deb "$folder"
