#!/bin/sh
# Prints the directory that holds the programs of the test cluster, and builds first what is missing there.
#
#     kubernetes.sh            kube-apiserver, kubelet and so on, the sidecars, helm, and the CRDs of snapshots (crd/)
#     kubernetes.sh helm       helm at least: half a minute
#
# Each is built once for its version from Go modules by name and kept outside the tree, under $TIDEMARK_CACHE (by default
# the user's cache directory). From nothing that takes about 12 minutes on two cores. The sidecars' versions are those of
# the chart (charts/tidemark/versions.yaml). Only the path goes to standard output.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
pins=$here/../../charts/tidemark/versions.yaml
kubernetes=1.34.4
helm=v3.19.2

cache=${TIDEMARK_CACHE:-${XDG_CACHE_HOME:-${HOME:?no HOME: set TIDEMARK_CACHE}/.cache}/tidemark}
tools=$cache/tools
scratch=

say() {
    printf 'kubernetes.sh: %s\n' "$*" >&2
}

# shellcheck source=tests/tools/go.sh
. "$here/go.sh"

pinned() {
    sed -n "s/^$1: //p" "$pins"
}

# What one directory holds follows from the versions alone; another set of them gets another directory.
provisioner=$(pinned csi-provisioner)
snapshotter=$(pinned csi-snapshotter)
resizer=$(pinned csi-resizer)
name=kubernetes-$kubernetes-$provisioner-$snapshotter-$resizer-$helm
programs=$tools/$name

staging='api apiextensions-apiserver apimachinery apiserver cli-runtime client-go cloud-provider cluster-bootstrap
    code-generator component-base component-helpers controller-manager cri-api cri-client cri-streaming
    csi-translation-lib dynamic-resource-allocation endpointslice externaljwt kms kube-aggregator
    kube-controller-manager kube-proxy kube-scheduler kubectl kubelet metrics mount-utils pod-security-admission
    sample-apiserver sample-cli-plugin sample-controller'

# built NAME...: whether all of these programs are there.
built() {
    for program in "$@"; do
        [ -x "$programs/$program" ] || return 1
    done
}

# module NAME REQUIREMENT...: begins a module that asks for these, and goes into it.
module() {
    mkdir -p "$scratch/$1"
    cd "$scratch/$1"
    "$go" mod init "tidemark.test/$1" >/dev/null 2>&1
    shift
    for one in "$@"; do
        "$go" mod edit -require "$one"
    done
}

# build FLAGS PACKAGE...: builds programs of the module. They appear under their names only when all are whole.
build() {
    flags=$1
    shift
    mkdir -p out
    # shellcheck disable=SC2086  # several flags
    "$go" build -mod=mod $go_flags -ldflags "-s -w $flags" -o out/ "$@" >&2
    mv out/* "$programs/"
}

# Kubernetes and helm are one module, so that both are made of the same libraries: what helm compiles, Kubernetes finds compiled.
kubernetes_module() {
    module "$1" "k8s.io/kubernetes@v$kubernetes" "helm.sh/helm/v3@$helm"
    for one in $staging; do
        "$go" mod edit -replace "k8s.io/$one=k8s.io/$one@v0.${kubernetes#1.}"
    done
}

build_kubernetes() {
    kubernetes_module kubernetes
    major=${kubernetes%%.*}
    minor=${kubernetes#*.}
    stamp=k8s.io/component-base/version
    command=k8s.io/kubernetes/cmd
    build "-X $stamp.gitVersion=v$kubernetes -X $stamp.gitMajor=$major -X $stamp.gitMinor=${minor%.*}" \
        $command/kube-apiserver $command/kube-controller-manager $command/kube-scheduler $command/kube-proxy \
        $command/kubelet $command/kubectl
}

build_helm() {
    kubernetes_module helm
    build "-X helm.sh/helm/v3/internal/version.version=$helm" helm.sh/helm/v3/cmd/helm
}

# One module as well, for the same reason.
build_sidecars() {
    client=github.com/kubernetes-csi/external-snapshotter/client/v8
    module sidecars "github.com/kubernetes-csi/external-provisioner/v6@$provisioner" \
        "github.com/kubernetes-csi/external-snapshotter/v8@$snapshotter" "$client@$snapshotter" \
        "github.com/kubernetes-csi/external-resizer/v2@$resizer"
    build "-X main.version=$provisioner" github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner
    for one in csi-snapshotter snapshot-controller; do
        build "-X main.version=$snapshotter" "github.com/kubernetes-csi/external-snapshotter/v8/cmd/$one"
    done
    build "-X main.version=$resizer" github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer
    mkdir -p "$programs/crd"
    cp "$("$go" list -mod=mod -m -f '{{.Dir}}' "$client")"/config/crd/*snapshot*.yaml "$programs/crd/"
    chmod u+w "$programs"/crd/*
}

# unless PROGRAM... -- PART: builds the part unless its programs are there.
part() {
    what=$1
    shift
    if ! built "$@"; then
        say "building $what"
        "build_$what"
    fi
}

all='kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl csi-provisioner csi-snapshotter
    snapshot-controller csi-resizer helm'
[ "${1-}" != helm ] || all=helm
# shellcheck disable=SC2086
if built $all; then
    printf '%s\n' "$programs"
    exit 0
fi

# helm has a lock of its own: whoever needs it alone does not wait for Kubernetes.
lock=kubernetes
[ "$all" != helm ] || lock=helm

# One builds, the others wait for it. No child is handed the lock: a daemon of the compiler must not keep it.
mkdir -p "$programs"
exec 9>"$tools/$lock.lock"
flock --nonblock 9 || { say 'waiting for the build that is under way'; flock 9; }
# shellcheck disable=SC2086
if ! built $all; then
    rm -rf "$tools/$lock"-build.*
    scratch=$(mktemp -d "$tools/$lock-build.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    (
        exec 9>&-
        find_go "$scratch" 26
        # Static, so that an image can hold the program and nothing else.
        export GOTOOLCHAIN=local CGO_ENABLED=0 GOOS='' GOARCH=''
        if [ "$all" = helm ]; then
            part helm helm
            exit 0
        fi
        part kubernetes kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl
        part sidecars csi-provisioner csi-snapshotter snapshot-controller csi-resizer
    )
fi
# The last, since a run of the tests builds it at a higher priority meanwhile.
[ "$all" = helm ] || sh "$0" helm >/dev/null
printf '%s\n' "$programs"
