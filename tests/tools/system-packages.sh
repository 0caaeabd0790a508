#!/bin/sh
# Installs the Debian packages that a task needs and that are missing here.
#
#     system-packages.sh GROUP...      the groups: run, test, image, release, cluster (below)
#
# A package is needed where the thing that we use of it is not there, wherever it may come from: so a second run takes
# milliseconds, and a machine that is not a Debian is told what to provide. Packages are installed by root, or by sudo
# where that works. The status is 0 when everything is there in the end; the caller knows whether it can do without.
set -eu

PATH=$PATH:/usr/sbin:/sbin # where mkfs and losetup are; not in an ordinary user's PATH
PYTHON=${PYTHON:-python3}
missing=

say() {
    printf '%s\n' "$*" >&2
}

# need PACKAGE THING...: THING is a command, or the path of a program, in which the shell's patterns work.
need() {
    package=$1
    shift
    for thing in "$@"; do
        case $thing in
            */*)
                # shellcheck disable=SC2086  # the pattern is to be expanded
                set -- $thing
                [ -x "$1" ] || missing="$missing $package"
                ;;
            *) command -v "$thing" >/dev/null || missing="$missing $package" ;;
        esac
    done
}

python_is_fit() {
    "$PYTHON" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

need_group() {
    case $1 in
        run) # what the agent uses
            python_is_fit || missing="$missing python3-venv"
            need e2fsprogs mkfs.ext4 resize2fs
            need mount losetup mount umount
            need util-linux blkid findmnt flock
            need xfsprogs mkfs.xfs xfs_growfs
            ;;
        test) # what the tests drive it with, or look at it with
            need attr setfattr
            need btrfs-progs mkfs.btrfs
            need curl curl
            need dmsetup dmsetup
            need fio fio
            need kmod insmod
            need postgresql '/usr/lib/postgresql/*/bin/initdb'
            need procps ps
            need strace strace
            need systemd systemd-analyze # reads the units; nothing is started
            # A kernel of its own, for what needs a power cut or the device mapper; it is made for x86-64 alone.
            [ "$(uname -m)" != x86_64 ] || {
                need lvm2 lvm
                need thin-provisioning-tools thin_check
                need user-mode-linux linux.uml
            }
            ;;
        image) # what builds the container image
            need buildah buildah
            need debootstrap debootstrap
            ;;
        release) # what builds it for other architectures too
            need qemu-user-static qemu-aarch64-static
            ;;
        cluster) # what a node of the test cluster runs, and what its control plane needs beside our own programs
            need busybox-static '/bin/busybox'
            need conntrack conntrack
            need containerd containerd ctr
            need containernetworking-plugins '/usr/lib/cni/ptp'
            need etcd-server etcd
            need iproute2 ip
            need iptables iptables-restore
            need kmod modprobe
            need prometheus promtool
            need runc runc
            need util-linux nsenter unshare
            ;;
        *)
            say "system-packages.sh: no group '$1'"
            exit 2
            ;;
    esac
}

survey() {
    missing=
    for group in "$@"; do
        need_group "$group"
    done
    missing=$(printf '%s\n' "$missing" | tr ' ' '\n' | sort -u | tr '\n' ' ')
    missing=${missing# }
    missing=${missing% }
}

# Of these packages only the programs are needed: the services that they bring neither start now nor at the next boot.
services() {
    for package in "$@"; do
        case $package in
            containerd) echo containerd ;;
            etcd-server) echo etcd ;;
            prometheus) echo prometheus ;;
        esac
    done
}

# Debian asks this file whether a service may start. One that is there is the machine's own, and stays as it is.
hold_services() {
    policy=/usr/sbin/policy-rc.d
    [ ! -e "$policy" ] || return 0
    made="$made $policy"
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
}

# Runs as root: system-packages.sh --install PACKAGE...
install() {
    made=
    trap 'rm -f $made; rmdir "$clusters" 2>/dev/null || true' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    # Debian's postgresql would make a database cluster for the machine and start it at every boot. The tests make their
    # own and need the programs only.
    clusters=/etc/postgresql-common/createcluster.d
    case " $* " in
        *' postgresql '*)
            made="$made $clusters/tidemark-tests.conf"
            mkdir -p "$clusters"
            echo 'create_main_cluster = false' >"$clusters/tidemark-tests.conf"
            ;;
    esac
    held=$(services "$@")
    [ -z "$held" ] || hold_services
    export DEBIAN_FRONTEND=noninteractive
    apt-get --quiet=2 -o DPkg::Lock::Timeout=300 update
    apt-get --quiet=2 -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 install --yes --no-install-recommends "$@" </dev/null
    for service in $held; do
        deb-systemd-helper disable "$service.service" || true
    done
}

if [ "${1-}" = --install ]; then
    shift
    install "$@"
    exit 0
fi

survey "$@"
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
    say "Missing here, by Debian's names: $missing. This machine has no apt-get to install them with."
    exit 1
fi
if [ "$(id -u)" -eq 0 ]; then
    as_root=
elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || { [ -t 0 ] && sudo -v; }; }; then
    as_root=sudo
else
    say "Missing here: $missing. Not root, and sudo does not work: nothing was installed."
    exit 1
fi
say "Installing Debian packages: $missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# shellcheck disable=SC2086  # a list of words, and nothing where we are root
$as_root sh "$0" --install $missing >"$log" 2>&1 || {
    cat "$log" >&2
    say "apt-get did not manage."
}
survey "$@"
[ -z "$missing" ] || {
    say "Still missing: $missing"
    exit 1
}
