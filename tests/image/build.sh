#!/bin/sh
# Builds the container image with the Dockerfile as it is, where no image registry can be reached.
#
#     build.sh [NAME]          builds it, and prints the name (localhost/tidemark-csi:dev)
#     build.sh buildah ...     runs buildah where the image lies: buildah images, buildah push NAME oci-archive:FILE:NAME
#
#     TIDEMARK_ARCH=arm64      builds it for another architecture, by Debian's name; qemu-user-static runs its programs
#     SOURCE_DATE_EPOCH=...    the time in seconds that the build writes into files, for images that are reproducible
#
# The base image of the Dockerfile is made of Debian's packages by debootstrap, once, under its public name. The image and
# the base lie in a store of their own under $TIDEMARK_CACHE (by default the user's cache directory), which may be
# removed at any time; base image and packages are as old as it is. Needs root, buildah and debootstrap.
set -eu

base=docker.io/library/debian:bookworm-slim
own_arch=$(dpkg --print-architecture)
arch=${TIDEMARK_ARCH:-$own_arch}
[ "$arch" = "$own_arch" ] || base=localhost/debian-$arch:bookworm-slim
tree=$(cd "$(dirname "$0")/../.." && pwd)
store=${TIDEMARK_CACHE:-${XDG_CACHE_HOME:-${HOME:?no HOME: set TIDEMARK_CACHE}/.cache}/tidemark}/image
bundle=/etc/ssl/certs/ca-certificates.crt
PATH=$PATH:/usr/sbin:/sbin
umask 022 # what the build makes is in the image with its modes

say() {
    printf 'build.sh: %s\n' "$*" >&2
}

# Files as they are and isolation by chroot: works in a container too, without any set-up of the machine's.
# A step runs in a copy of the machine's mounts. Disks of tests that run beside this would stay in use as long as the step,
# and could not be detached meanwhile (seen: a minute), so they are taken out of a copy of our own before.
buildah() {
    unshare --mount --propagation slave sh -c '
        sed -n "s,^[^ ]* [^ ]* [^ ]* [^ ]* \(/[^ ]*\) .* - [^ ]* /dev/loop[0-9]* .*,\1,p" /proc/self/mountinfo | sort -r |
            while read -r point; do
                case $1/ in "$point"/*) continue ;; esac
                case $point in /tmp/* | /var/lib/kubelet/*) umount --lazy "$(printf %b "$point")" ;; esac
            done
        shift
        exec "$@"' sh "$store" \
        buildah --root "$store/root" --runroot "$store/run" --storage-driver vfs "$@"
}

if [ "$(id -u)" -ne 0 ]; then
    say 'debootstrap and the build need root'
    exit 1
fi
mkdir -p "$store"
if [ "${1-}" = buildah ]; then
    shift
    buildah "$@"
    exit
fi
name=${1:-localhost/tidemark-csi:dev}

scratch=$(mktemp -d "$store/scratch.XXXXXX")
handlers=
trap '[ -z "$handlers" ] || umount "$handlers"; rm -rf "$scratch"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# One builds at a time. No child is handed the lock: buildah may leave a process behind.
exec 9>"$store/lock"
flock --nonblock 9 || { say 'waiting for the build that is under way'; flock 9; }

# Whether this machine runs programs of the other architecture, the kernel says in binfmt_misc. Where it is mounted the
# machine decides; elsewhere it is mounted for the time of the build, and what it runs ends with that.
if [ "$arch" != "$own_arch" ]; then
    case $arch in
        amd64) emulator=qemu-x86_64 ;;
        arm64) emulator=qemu-aarch64 ;;
        *)
            say "no emulator is known for $arch: add its name here"
            exit 1
            ;;
    esac
    known=/proc/sys/fs/binfmt_misc
    if [ ! -e "$known/$emulator" ]; then
        format=/usr/lib/binfmt.d/$emulator.conf
        [ -e "$format" ] || {
            say "$arch needs $emulator: install Debian's qemu-user-static"
            exit 1
        }
        if [ ! -e "$known/register" ]; then
            mount -t binfmt_misc binfmt_misc "$known" || {
                say "the kernel does not let other programs run $arch (binfmt_misc): build for $own_arch alone"
                exit 1
            }
            handlers=$known
        fi
        # Somebody's copy of a mount that went with the last build keeps what was registered there, and it is back with this one.
        [ -e "$known/$emulator" ] || cat "$format" >"$known/register"
    fi
fi

if ! buildah images --quiet "$base" >/dev/null 2>&1 9>&-; then
    say "making $base of Debian's packages (once; about a minute)"
    debootstrap --arch="$arch" --variant=minbase bookworm "$scratch/base" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >"$scratch/log" 2>&1 9>&- || {
        tail -n 20 "$scratch/log" >&2
        say 'debootstrap did not manage'
        exit 1
    }
    rm -rf "$scratch/base/var/cache/apt/archives" "$scratch/base/var/lib/apt/lists"
    mkdir -p "$scratch/base/var/cache/apt/archives/partial" "$scratch/base/var/lib/apt/lists/partial"
    container=$(buildah from --arch "$arch" scratch 9>&-)
    buildah add --quiet "$container" "$scratch/base" / >/dev/null 9>&-
    buildah config --cmd bash "$container" 9>&-
    buildah commit --quiet --rm "$container" "$base" >/dev/null 9>&-
    rm -rf "$scratch/base"
fi

# Only what the Dockerfile copies, and of that only what git has: an image of the same content need not be built again.
mkdir "$scratch/tree"
(cd "$tree" && tar -cf - --exclude=__pycache__ --exclude='csi_driver/_pb/*.py*' --sort=name --mtime=@0 --owner=0 --group=0 \
    --numeric-owner --mode=u=rwX,go=rX Dockerfile LICENSE README.md csi_driver proto pyproject.toml) >"$scratch/tree.tar"
content=$(sha256sum "$scratch/tree.tar" | cut -d ' ' -f 1)${SOURCE_DATE_EPOCH:+-$SOURCE_DATE_EPOCH}
label=dev.tidemark.content
there=$(buildah inspect --type image --format "{{index .OCIv1.Config.Labels \"$label\"}}" "$name" 2>/dev/null 9>&-) || there=
if [ "$there" = "$content" ]; then
    printf '%s\n' "$name"
    exit 0
fi
tar -xf "$scratch/tree.tar" -C "$scratch/tree"

# What this machine needs to reach the package archives is lent to the build: apt's settings for downloads, pip's
# settings, and the certificates that the machine trusts. In the image stay empty files where they were mounted.
apt-config dump | grep -E '^Acquire::(http|https|Check-Valid-Until|Check-Date|Retries|ForceIPv4)\b' >"$scratch/apt.conf" || true
{
    echo '[global]'
    [ ! -e "$bundle" ] || echo 'cert = /etc/tidemark-build/ca.crt'
    "${PYTHON:-python3}" -m pip config list 2>/dev/null |
        sed -n -E "s/^(global|:env:)\.(index-url|extra-index-url|trusted-host|proxy|(default-)?timeout)='(.*)'\$/\2 = \4/p"
} >"$scratch/pip.conf"
set -- --volume "$scratch/apt.conf:/etc/apt/apt.conf.d/00tidemark-build:ro" --volume "$scratch/pip.conf:/etc/pip.conf:ro"
[ ! -e "$bundle" ] || set -- "$@" --volume "$bundle:/etc/tidemark-build/ca.crt:ro"

[ -z "${SOURCE_DATE_EPOCH-}" ] || set -- "$@" --build-arg "SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH"

say "building $name for $arch (about a minute; ten where it is emulated)"
buildah bud --quiet --arch "$arch" --isolation chroot --pull-never --build-arg "BASE=$base" --label "$label=$content" "$@" \
    --tag "$name" "$scratch/tree" >"$scratch/log" 2>&1 9>&- || {
    cat "$scratch/log" >&2
    say 'the build failed'
    exit 1
}
buildah rmi --prune >/dev/null 2>&1 9>&- || true # what had this name before, unless a container still uses it
printf '%s\n' "$name"
