#!/bin/sh
# Prints the path of promtool, which tests the chart's alerts, or of prometheus, which answers the dashboard's queries:
#
#     promtool.sh [promtool | prometheus]
#
# Where PATH has none, it is taken out of Debian's package of Prometheus, which is not installed: it would start a service on
# this machine. Kept outside the tree, under $TIDEMARK_CACHE (by default the user's cache directory). Only the path goes to
# standard output.
set -eu

program=${1:-promtool}
if command -v "$program"; then
    exit 0
fi
cache=${TIDEMARK_CACHE:-${XDG_CACHE_HOME:-${HOME:?no HOME: set TIDEMARK_CACHE}/.cache}/tidemark}
tool=$cache/tools/bin/$program

say() {
    printf 'promtool.sh: %s\n' "$*" >&2
}

if [ ! -x "$tool" ]; then
    command -v apt-get >/dev/null || { say "install Prometheus, so that $program is in PATH"; exit 1; }
    mkdir -p "$cache/tools/bin"
    scratch=$(mktemp -d "$cache/tools/promtool.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    cd "$scratch"
    # A machine that never updated its lists knows no packages.
    apt-get --quiet=2 download prometheus >log 2>&1 || { apt-get --quiet=2 update && apt-get --quiet=2 download prometheus; } >log 2>&1 ||
        { cat log >&2; say "Debian's package prometheus cannot be had"; exit 1; }
    dpkg-deb --extract prometheus_*.deb package
    mv "package/usr/bin/$program" "$tool"
fi
printf '%s\n' "$tool"
