"""A node: a network, mount, UTS and PID namespace of its own, and in it containerd, the kubelet and kube-proxy.

Nothing on it is prepared for the driver: /var/lib/tidemark is an empty directory of the machine's own file system.
"""

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from csi_driver.backends.reflink.layout import IMAGE
from csi_driver.host.block import loop, loop_ioctl
from rig import certificates, cgroups, network
from rig.machine import Machine, command, until
from rig.paths import PKI, STATE, node_address, pod_subnet, programs
from rig.shared import OWN

PAUSE = "registry.k8s.io/pause:3.10.1"
CNI_PLUGINS = "/usr/lib/cni"
SOCKET = "/run/containerd/containerd.sock"


class Node(Machine):
    """Node `index` from 1 on. Services: containerd, kubelet, kube-proxy."""

    def __init__(self, index: int, count: int) -> None:
        self.index, self.count = index, count
        self.name = f"node{index}"
        self.address = node_address(index)
        super().__init__(STATE / self.name, self.name)
        self.pool_image = self.directory / "tidemark" / "pool.img"

    def up(self) -> None:
        """Make the node for the first time, and switch it on."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for name in (*OWN, "containerd", "cni-config"):
            (self.directory / name).mkdir(exist_ok=True)
        network.make_node(self.name, self.index, list(range(1, self.count + 1)))
        group = cgroups.make(self.name)
        certificates.issue(
            f"{self.name}-server", f"system:node:{self.name}", "system:nodes", [self.address], [self.name]
        )
        certificates.kubeconfig(self.directory / "kubeconfig", self.name, f"system:node:{self.name}", "system:nodes")
        certificates.kubeconfig(self.directory / "proxy.kubeconfig", f"{self.name}-proxy", "system:kube-proxy")
        self._write("kubelet.json", self._kubelet(group))
        self._write("cni-config/10-pods.conflist", self._pod_network())
        (self.directory / "resolv.conf").touch()
        (self.directory / "containerd.toml").write_text(self._containerd())
        registry = self.directory / "registry" / "_default"
        registry.mkdir(parents=True, exist_ok=True)
        # An image that was not imported fails at once, and nothing ever asks another machine for it.
        (registry / "hosts.toml").write_text('server = "http://127.0.0.1:9"\n')
        self.power_on()

    def power_on(self) -> None:
        """Switch it on, with the disk that it had."""
        cgroups.make(self.name)
        enter = [
            *(
                "nsenter",
                f"--net={network.NAMED}/{network.namespace(self.name)}",
                "unshare",
                "--mount",
                "--uts",
                "--pid",
            ),
            *("--fork", "--kill-child", "--mount-proc", "--propagation", "private"),
        ]
        # What other tests have mounted on this machine is copied with the rest, and would be kept in use by the node.
        others = "awk '$5 ~ \"^/tmp/\" { print $5 }' /proc/self/mountinfo | tac | xargs -r umount --lazy"
        prepare: list[Sequence[object]] = [
            ("sh", "-c", others),
            ("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"),
            ("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/var/log"),
            *(("mount", "--bind", self.directory / name, f"/var/lib/{name}") for name in OWN),
            ("sysctl", "--quiet", "--write", "net.ipv4.ip_forward=1"),
            # A node's mounts are shared, as systemd makes them: what a pod mounts with Bidirectional is seen outside.
            ("mount", "--make-rshared", "/"),
        ]
        self.start(enter, prepare, self._services())
        until(f"containerd on {self.name}; see {self.logs}", lambda: self.on_node("ctr", "version", check=False), 30)

    def power_off(self) -> None:
        """Cut its power: all its processes and mounts are gone, and then the loop devices that are left of its pool.

        On a real machine those would be gone as well; here they would keep the pool's file system alive, and the node
        would find it mounted when it is back.
        """
        self.cut()
        until(f"the loop devices of {self.name} are let go", self._detach_all, 30)
        # A machine begins without any; a kubelet that finds those of its last life looks at each for seconds.
        until(f"the control groups of {self.name} are empty", self._remove_groups, 30)

    def down(self) -> None:
        """Switch it off for good, and remove what it had on this machine."""
        self.power_off()
        network.remove_node(self.name)
        cgroups.remove(self.name)
        shutil.rmtree(self.directory, ignore_errors=True)

    def on_node(self, *argv: object, timeout: float = 60.0, check: bool = True) -> str:
        """Run a command of the machine in the node's namespaces."""
        pid = self.pid
        return command(
            "nsenter", f"--target={pid}", "--mount", "--uts", "--net", "--pid", *argv, timeout=timeout, check=check
        )

    def import_images(self, archive: Path) -> None:
        self.on_node("ctr", f"--address={SOCKET}", "--namespace=k8s.io", "images", "import", archive, timeout=300)

    def pool_loops(self) -> tuple[list[loop_ioctl.LoopDevice], list[loop_ioctl.LoopDevice]]:
        """The loop devices on files in the pool, and that of the pool itself."""
        try:
            status = os.stat(self.pool_image)
        except FileNotFoundError:
            return [], []
        own = [each for each in loop.scan(self.pool_image.name) if each.backing == (status.st_dev, status.st_ino)]
        pools = {os.makedev(each.major, each.minor) for each in own}
        return [each for each in loop.scan(IMAGE) if each.backing[0] in pools], own

    def _remove_groups(self) -> bool:
        with suppress(OSError):
            cgroups.remove(self.name)
            return True
        return False

    def _detach_all(self) -> bool:
        inner, own = self.pool_loops()
        # For a raw block volume the kubelet attaches one more, to the node of its device.
        nodes = {(status.st_dev, status.st_ino) for status in (os.stat(each.path) for each in inner)}
        outer = [each for each in loop.scan() if each.backing in nodes] if nodes else []
        for device in outer or inner or own:
            # The kernel lists each XFS that is mounted anywhere, or held by something.
            if device not in own or not Path(f"/sys/fs/xfs/{device.name}").exists():
                with suppress(OSError):
                    loop.detach(device)
        return not inner and not own

    def _write(self, name: str, content: object) -> None:
        (self.directory / name).write_text(json.dumps(content, indent=1))

    def _services(self) -> dict[str, list[str]]:
        kubelet = [
            *(f"{programs()}/kubelet", f"--config={self.directory}/kubelet.json", f"--hostname-override={self.name}"),
            *(f"--kubeconfig={self.directory}/kubeconfig", f"--node-ip={self.address}"),
        ]
        proxy = [
            *(f"{programs()}/kube-proxy", f"--kubeconfig={self.directory}/proxy.kubeconfig", "--proxy-mode=iptables"),
            *(
                f"--hostname-override={self.name}",
                "--conntrack-max-per-core=0",
                "--conntrack-tcp-timeout-established=0",
            ),
            *(
                "--conntrack-tcp-timeout-close-wait=0",
                "--healthz-bind-address=",
                "--metrics-bind-address=127.0.0.1:10249",
            ),
        ]
        containerd = ["containerd", f"--config={self.directory}/containerd.toml"]
        return {"containerd": containerd, "kubelet": kubelet, "kube-proxy": proxy}

    def _kubelet(self, group: str) -> dict[str, object]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": f"{PKI}/ca.crt"},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": f"{PKI}/{self.name}-server.crt",
            "tlsPrivateKeyFile": f"{PKI}/{self.name}-server.key",
            "containerRuntimeEndpoint": f"unix://{SOCKET}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": group,
            "failCgroupV1": False,
            "failSwapOn": False,
            "resolvConf": f"{self.directory}/resolv.conf",
            "volumePluginDir": f"{self.directory}/volume-plugins",
            "maxPods": 200,
            "serializeImagePulls": False,
            # The machine's disk is shared, and how full it is is no concern of these nodes.
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            # Quicker than on real nodes: what is waited for in tests.
            "syncFrequency": "10s",
            "nodeStatusUpdateFrequency": "4s",
            "volumeStatsAggPeriod": "10s",
        }

    def _pod_network(self) -> dict[str, object]:
        # A cable for each pod, not a bridge: so all is routed, and answers return through the translation of
        # service addresses without the kernel module that has bridges look at them.
        addresses = {
            "type": "host-local",
            "ranges": [[{"subnet": pod_subnet(self.index)}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": "/run/cni-addresses",
        }
        return {"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "ptp", "ipam": addresses}]}

    def _containerd(self) -> str:
        cri = 'plugins."io.containerd.grpc.v1.cri"'
        return f"""
version = 2
root = "{self.directory}/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
address = "{SOCKET}"
[{cri}]
sandbox_image = "{PAUSE}"
# Where the rig itself may not lower that score, runc could not either, and would not start a system-critical pod.
restrict_oom_score_adj = true
[{cri}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[{cri}.cni]
bin_dir = "{CNI_PLUGINS}"
conf_dir = "{self.directory}/cni-config"
[{cri}.registry]
config_path = "{self.directory}/registry"
"""
