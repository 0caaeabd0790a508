"""The checks of `tidemark doctor`: each is a pure function from what was found to one line with its remedy."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from csi_driver.cli.doctor.facts import Facts, PoolFacts

State = Literal["ok", "warn", "fail"]

OLDEST_KERNEL = (5, 15)
"""README.md names it too."""

CLOCK_ERROR = 1.0
"""Seconds. Schedules, holds and certificates count in more than that."""

_NEEDED = {21: "CAP_SYS_ADMIN", 1: "CAP_DAC_OVERRIDE", 3: "CAP_FOWNER"}
"""Numbers of linux/capability.h. Nothing is mounted, frozen or attached without these."""

_USEFUL = {
    24: ("CAP_SYS_RESOURCE", "a mounted ext4 cannot grow"),
    27: ("CAP_MKNOD", "a device that /dev lacks cannot be used"),
}

_KUBELET_PARTS = ("plugins", "plugins_registry", "pods")


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One line. `remedy`: what to do; empty if nothing is to be done."""

    check: str
    state: State
    message: str
    remedy: str = ""


def run_checks(facts: Facts) -> list[CheckResult]:
    """Return the result of every check, in the order in which a new user meets them."""
    results = [check(facts) for check in CHECKS]
    return [*results, *(check_pool(pool) for pool in facts.pools)]


def check_kernel(facts: Facts) -> CheckResult:
    """The version of the kernel."""
    match = re.match(r"(\d+)\.(\d+)", facts.release)
    needed = ".".join(map(str, OLDEST_KERNEL))
    if match is None:
        return CheckResult("kernel", "warn", f"version {facts.release!r} is unknown", f"use Linux {needed} or newer")
    if (int(match[1]), int(match[2])) < OLDEST_KERNEL:
        return CheckResult("kernel", "fail", f"{facts.release} is older than {needed}", f"use Linux {needed} or newer")
    return CheckResult("kernel", "ok", facts.release)


def check_xfs(facts: Facts) -> CheckResult:
    """Whether the kernel can mount XFS, on which pools are."""
    if facts.file_systems is None:
        return CheckResult("XFS", "warn", "the kernel's file systems cannot be seen", "run as root, on the node itself")
    if "xfs" not in facts.file_systems:
        remedy = "install the kernel's XFS module, or use a kernel with CONFIG_XFS_FS"
        return CheckResult("XFS", "fail", "the kernel has no XFS, on which pools are", remedy)
    return CheckResult("XFS", "ok", "the kernel has it")


def check_tools(facts: Facts) -> CheckResult:
    """The programs that make and repair file systems."""
    if facts.missing_tools:
        missing = ", ".join(facts.missing_tools)
        remedy = "install xfsprogs and e2fsprogs (an agent in a container brings its own)"
        return CheckResult("programs", "fail", f"{missing} not found", remedy)
    return CheckResult("programs", "ok", "xfsprogs and e2fsprogs are installed")


def check_loop(facts: Facts) -> CheckResult:
    """Loop devices, by which images become block devices."""
    if facts.loop_control is None:
        return CheckResult("loop devices", "warn", "whether root may use them cannot be seen", "run as root")
    if not facts.loop_control:
        remedy = "run as root; `modprobe loop`; in a container: make it privileged, with the host's /dev"
        return CheckResult("loop devices", "fail", "/dev/loop-control cannot be opened", remedy)
    return CheckResult("loop devices", "ok", "/dev/loop-control can be opened")


def check_capabilities(facts: Facts) -> CheckResult:
    """What this process may do, as an agent that is started in the same way may."""
    if not facts.root:
        message = "this user is not root, as the agent must be; what root may do here cannot be seen"
        return CheckResult("capabilities", "warn", message, "run `tidemark doctor` as root")
    if facts.capabilities is None:
        return CheckResult("capabilities", "warn", "/proc/self/status cannot be read", "mount /proc")
    remedy = "run the agent with them; in a container: securityContext.privileged, as the chart does"
    missing = [name for bit, name in _NEEDED.items() if not facts.capabilities >> bit & 1]
    if missing:
        return CheckResult("capabilities", "fail", f"missing: {', '.join(missing)}", remedy)
    without = [f"{name} ({lost})" for bit, (name, lost) in _USEFUL.items() if not facts.capabilities >> bit & 1]
    if without:
        return CheckResult("capabilities", "warn", f"missing: {', '.join(without)}", remedy)
    return CheckResult("capabilities", "ok", "root has those that an agent needs")


def check_lvm(facts: Facts) -> CheckResult:
    """Whether the machine's LVM looks into volumes."""
    if facts.lvm:
        remedy = "reject loop devices by LVM's global_filter: docs/how-to/tenants-data.md"
        return CheckResult("LVM filter", "warn", f"LVM looks into volumes: {facts.lvm}", remedy)
    if not facts.lvm_seen:
        return CheckResult("LVM filter", "warn", "/etc/lvm/lvm.conf cannot be read", "run as root")
    return CheckResult("LVM filter", "ok", "LVM leaves loop devices alone, or is not installed")


def check_tracefs(facts: Facts) -> CheckResult:
    """The kernel's tracing, for diagnosis alone."""
    if facts.tracefs:
        return CheckResult("tracefs", "ok", f"mounted at {facts.tracefs}")
    message = "the kernel's tracing is not mounted; only who looks for what slows a disk down needs it"
    return CheckResult("tracefs", "warn", message, "mount -t tracefs tracefs /sys/kernel/tracing")


def check_clock(facts: Facts) -> CheckResult:
    """Whether something keeps the clock right: holds, schedules and certificates go by it."""
    if facts.clock is None:
        return CheckResult("clock", "warn", "the state of the clock cannot be read", "run on the node itself")
    if not facts.clock.synchronised:
        remedy = "run chrony, systemd-timesyncd or another time service"
        return CheckResult("clock", "warn", "nothing keeps the clock right", remedy)
    if facts.clock.max_error > CLOCK_ERROR:
        message = f"the clock may be wrong by {facts.clock.max_error:.1f} s"
        return CheckResult("clock", "warn", message, "look at the time service: chronyc tracking, timedatectl")
    return CheckResult("clock", "ok", f"synchronised, wrong by {facts.clock.max_error * 1000:.0f} ms at most")


def check_kubelet(facts: Facts) -> CheckResult:
    """The kubelet's directory, where it finds drivers and has its pods' mounts."""
    if not facts.kubelet:
        return CheckResult("kubelet directory", "ok", "none: this machine is not a node of a cluster")
    missing = [part for part in _KUBELET_PARTS if part not in facts.kubelet_parts]
    if missing and not facts.root:
        return CheckResult("kubelet directory", "warn", f"{facts.kubelet} cannot be read", "run as root")
    if missing:
        remedy = "name the kubelet's own directory by --kubelet-dir, and in the chart by kubeletDirectory"
        return CheckResult("kubelet directory", "fail", f"{facts.kubelet} has no {', '.join(missing)}", remedy)
    return CheckResult("kubelet directory", "ok", facts.kubelet)


def check_propagation(facts: Facts) -> CheckResult:
    """Whether pods see what an agent mounts for them."""
    name = "mount propagation"
    if not facts.kubelet:
        return CheckResult(name, "ok", "not needed without a kubelet")
    if facts.kubelet_shared is None:
        return CheckResult(name, "warn", f"the mount of {facts.kubelet} cannot be seen", "run as root")
    if not facts.kubelet_shared:
        remedy = "mount --make-rshared / on the node; in a container: mountPropagation: Bidirectional"
        return CheckResult(name, "fail", f"pods do not see mounts below {facts.kubelet}", remedy)
    return CheckResult(name, "ok", f"mounts below {facts.kubelet} are seen by pods")


def check_agent(facts: Facts) -> CheckResult:
    """Whether an agent answers; a machine that is being prepared has none yet."""
    if facts.agent:
        return CheckResult("agent", "ok", f"version {facts.agent} answers")
    return CheckResult("agent", "warn", "none answers", facts.agent_error)


def check_pool(pool: PoolFacts) -> CheckResult:
    """Whether a directory can be a pool: on XFS with reflinks."""
    name = f"pool {pool.path}"
    if pool.error:
        return CheckResult(name, "fail", f"it cannot be looked at: {pool.error}", "mount its disk there")
    if pool.fs_type != "xfs":
        remedy = "use a directory on XFS, or --pool-image FILE --pool-size 20Gi"
        return CheckResult(name, "fail", f"it is on {pool.fs_type}, whose files cannot share blocks here", remedy)
    if not pool.reflink:
        return CheckResult(name, "fail", "its XFS was made without reflinks", "make it again: mkfs.xfs -m reflink=1")
    return CheckResult(name, "ok", "XFS with reflinks")


CHECKS: tuple[Callable[[Facts], CheckResult], ...] = (
    check_kernel,
    check_xfs,
    check_tools,
    check_loop,
    check_capabilities,
    check_lvm,
    check_tracefs,
    check_clock,
    check_kubelet,
    check_propagation,
    check_agent,
)
