"""Pods: what the agents and the controller are given, on one sort of nodes and on several."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
import yaml
from chart_rig import CHART, VALUES, Chart, Document, Refused, Rendered

from csi_driver import DRIVER_NAME, __version__

PINNED: dict[str, str] = yaml.safe_load((CHART / "versions.yaml").read_text())


def env(container: Document) -> dict[str, Any]:
    """Environment variables by name; those that are not written out are their source."""
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


def pod(documents: Rendered, kind: str, name: str) -> Document:
    """The pod's specification in a workload."""
    found: Document = documents.one(kind, name)["spec"]["template"]["spec"]
    return found


def mounts(pod: Document) -> dict[str, Document]:
    """Host directories of a pod's first container, by their path in it; `host` and `propagation` say where and how."""
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    return {
        mount["mountPath"]: {
            "host": volumes[mount["name"]]["hostPath"]["path"],
            "propagation": mount.get("mountPropagation"),
            "read_only": mount.get("readOnly", False),
        }
        for mount in pod["containers"][0]["volumeMounts"]
        if "hostPath" in volumes[mount["name"]]
    }


def test_chart_package_and_image_have_one_version(chart: Chart) -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (about["version"], about["appVersion"]) == (__version__, __version__)
    image = chart.render().container("agent")["image"]
    assert image.endswith(f"/tidemark-csi:{__version__}")
    assert chart.render().container("controller")["image"] == image


def test_a_digest_wins_over_a_tag(chart: Chart) -> None:
    digest = "sha256:" + "0" * 64
    documents = chart.render({"image": {"tag": "dev", "digest": digest}})
    assert documents.container("agent")["image"].endswith(f"/tidemark-csi@{digest}")
    documents = chart.render({"sidecars": {"resizer": {"digest": digest}, "provisioner": {"tag": "v6.9.9"}}})
    assert documents.container("csi-resizer")["image"].endswith(f"/csi-resizer@{digest}")
    assert documents.container("csi-provisioner")["image"].endswith("/csi-provisioner:v6.9.9")


@pytest.mark.parametrize("name", ["csi-provisioner", "csi-snapshotter", "csi-resizer", "snapshot-controller"])
def test_sidecars_have_the_versions_that_are_tested_together(chart: Chart, name: str) -> None:
    """tests/tools/kubernetes.sh builds those of the same file."""
    documents = chart.render({"snapshotController": {"install": True}})
    assert documents.container(name)["image"] == f"registry.k8s.io/sig-storage/{name}:{PINNED[name]}"
    assert len(PINNED) == 4


def test_the_sidecars_arguments(chart: Chart) -> None:
    documents = chart.render()
    shared = {"--csi-address=/csi/csi.sock", "--leader-election", "--leader-election-namespace=$(NAMESPACE)"}
    own = {
        "csi-provisioner": {
            *("--enable-capacity", "--capacity-ownerref-level=2", "--extra-create-metadata", "--strict-topology=false"),
            *("--immediate-topology=true", "--timeout=60s", "--retry-interval-max=30s"),
        },
        "csi-snapshotter": {"--extra-create-metadata", "--feature-gates=CSIVolumeGroupSnapshot=true", "--timeout=60s"},
        "csi-resizer": {"--handle-volume-inuse-error=false", "--timeout=60s"},
    }
    ports = []
    for name, arguments in own.items():
        container = documents.container(name)
        assert set(container["args"]) >= shared | arguments
        # Where a class names no file system the driver decides: what the source holds, else ext4.
        assert not any(arg.startswith("--default-fstype") for arg in container["args"])
        assert {"name": "NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}} in container["env"]
        (port,) = [arg.removeprefix("--http-endpoint=:") for arg in container["args"] if "--http-endpoint" in arg]
        assert container["livenessProbe"]["httpGet"] == {"path": "/healthz/leader-election", "port": int(port)}
        ports.append(port)
    # They share the pod's address with the controller, and with each other.
    assert len({*ports, "9808", "9443"}) == 5


def test_the_controller_is_there_before_its_sidecars_and_after_them(chart: Chart) -> None:
    found = pod(chart.render(), "Deployment", "tidemark-controller")
    (controller,) = found["initContainers"]
    assert (controller["name"], controller["restartPolicy"]) == ("controller", "Always")
    assert controller["args"] == ["controller"]
    assert "startupProbe" in controller  # the sidecars start when it has passed
    assert [one["name"] for one in found["containers"]] == ["csi-provisioner", "csi-snapshotter", "csi-resizer"]
    given = env(controller)
    assert (given["CSI_ENDPOINT"], given["TIDEMARK_RELEASE"]) == ("unix:///csi/csi.sock", "tidemark")
    assert given["TIDEMARK_NAMESPACE"] == {"fieldRef": {"fieldPath": "metadata.namespace"}}
    off = chart.render({"controller": {"operator": False}}).container("controller")
    assert off["args"] == ["controller", "--no-operator"]


def test_a_proxy_before_the_api_is_for_all_that_talk_to_it(chart: Chart) -> None:
    """And for nothing else: calls to agents go to agents. By default there is none."""
    on = {"controller": {"apiProxy": "http://proxy.example.org:3128"}, "snapshotController": {"install": True}}
    for values, url in (({"snapshotController": {"install": True}}, None), (on, "http://proxy.example.org:3128")):
        documents = chart.render(values)
        for name in ("csi-provisioner", "csi-snapshotter", "csi-resizer", "snapshot-controller"):
            assert env(documents.container(name)).get("HTTPS_PROXY") == url
        controller = env(documents.container("controller"))
        assert (controller.get("TIDEMARK_API_PROXY"), controller.get("HTTPS_PROXY")) == (url, None)
        (check,) = documents.one("Job", "tidemark-uninstall-check")["spec"]["template"]["spec"]["containers"]
        assert {one["name"]: one["value"] for one in check.get("env", ())}.get("TIDEMARK_API_PROXY") == url
        assert not [name for name in env(documents.container("agent")) if "PROXY" in name]
    with pytest.raises(Refused, match="apiProxy"):
        chart.render({"controller": {"apiProxy": "proxy:3128"}})


def test_only_the_agent_is_privileged(chart: Chart) -> None:
    documents = chart.render(VALUES / "everything.yaml")
    for document in documents:
        spec = document.get("spec") or {}
        if "template" not in spec:
            continue
        found = spec["template"]["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(found), document["metadata"]["name"]
        for container in [*found.get("initContainers", []), *found["containers"]]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            if container["name"] == "agent":
                assert context["privileged"] is True
                continue
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert found["securityContext"]["runAsNonRoot"] is True
            assert not any("hostPath" in volume for volume in found.get("volumes", []))


def test_an_agent_without_any_values_keeps_its_pool_in_a_file(chart: Chart) -> None:
    documents = chart.render()
    found = pod(documents, "DaemonSet", "tidemark-agent")
    given = env(documents.container("agent"))
    assert given["TIDEMARK_POOL_IMAGE"] == "/var/lib/tidemark/pool.img"
    assert given["TIDEMARK_POOL_MOUNT"] == "/var/lib/tidemark/pool"
    assert given["TIDEMARK_NODE_NAME"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}
    assert "TIDEMARK_POOL" not in given
    assert mounts(found)["/var/lib/tidemark"] == {
        "host": "/var/lib/tidemark",
        "propagation": "Bidirectional",
        "read_only": False,
    }
    assert found["nodeSelector"] == {"kubernetes.io/os": "linux"}
    assert found["tolerations"] == [{"operator": "Exists"}]
    assert (found["priorityClassName"], found["terminationGracePeriodSeconds"]) == ("system-node-critical", 60)


@pytest.mark.parametrize("kubelet", ["/var/lib/kubelet", "/var/lib/k0s/kubelet"])
def test_the_agent_meets_the_kubelet_where_that_is(chart: Chart, kubelet: str) -> None:
    documents = chart.render({"kubeletDirectory": kubelet})
    found = mounts(pod(documents, "DaemonSet", "tidemark-agent"))
    # What the kubelet names in its calls must be the same place for both.
    for path in (f"{kubelet}/pods", f"{kubelet}/plugins/kubernetes.io/csi"):
        assert (found[path]["host"], found[path]["propagation"]) == (path, "Bidirectional")
    assert found["/csi"]["host"] == f"{kubelet}/plugins/{DRIVER_NAME}"
    assert found["/registration"]["host"] == f"{kubelet}/plugins_registry"
    assert env(documents.container("agent"))["TIDEMARK_KUBELET_SOCKET"] == f"{kubelet}/plugins/{DRIVER_NAME}/csi.sock"
    assert (found["/dev"]["host"], found["/sys"]["host"]) == ("/dev", "/sys")
    assert found["/run/udev"]["read_only"] is True
    assert (found["/run/tidemark"]["host"], found["/run/tidemark"]["read_only"]) == ("/run/tidemark", False)


def test_pools_are_directories_of_the_node_and_see_later_mounts(chart: Chart) -> None:
    pools = [{"name": "fast", "path": "/srv/nvme"}, {"name": "bulk", "path": "/srv/disk"}]
    documents = chart.render({"pools": pools, "poolInit": True})
    given = env(documents.container("agent"))
    assert given["TIDEMARK_POOL"] == "fast=reflink:/srv/nvme bulk=reflink:/srv/disk"
    assert given["TIDEMARK_POOL_INIT"] == "true"
    assert "TIDEMARK_POOL_IMAGE" not in given
    found = mounts(pod(documents, "DaemonSet", "tidemark-agent"))
    for pool in pools:
        assert found[pool["path"]]["host"] == pool["path"]
        assert found[pool["path"]]["propagation"] == "HostToContainer"
    assert "/var/lib/tidemark" not in found


def test_a_pool_in_a_volume_group_is_named_as_the_agent_reads_it(chart: Chart) -> None:
    documents = chart.render(VALUES / "lvm.yaml")
    agents = {name: pod(documents, "DaemonSet", name) for name in documents.names("DaemonSet")}
    given = {name: env(found["containers"][0]).get("TIDEMARK_POOL") for name, found in agents.items()}
    assert given == {
        "tidemark-agent": None,
        "tidemark-agent-mixed": "fast=lvm:fast bulk=reflink:/srv/disk",
        "tidemark-agent-thin": "fast=lvm:vg-nvme/tidemark",
    }


def test_only_agents_with_volume_groups_get_what_lvm_needs(chart: Chart) -> None:
    """The page on security lists it, with the reasons."""
    documents = chart.render(VALUES / "lvm.yaml")
    agents = {name: pod(documents, "DaemonSet", name) for name in documents.names("DaemonSet")}
    plain = agents.pop("tidemark-agent")
    assert "hostPID" not in plain
    for name, found in agents.items():
        assert found["hostPID"] is True, name
        assert not {"hostNetwork", "hostIPC"} & set(found)
        extra = {path: mount["host"] for path, mount in mounts(found).items() if path not in mounts(plain)}
        assert extra.pop("/run/lock/lvm") == "/run/lock/lvm"
        assert extra == ({"/srv/disk": "/srv/disk"} if name.endswith("mixed") else {})
    assert "/run/lock/lvm" not in mounts(plain)


def test_a_node_belongs_to_exactly_one_group(chart: Chart) -> None:
    """Two agents on a node would share its kubelet and its pools."""
    documents = chart.render(VALUES / "groups.yaml")
    nvme, old = "example.com/disks", "node.kubernetes.io/instance-type"
    nodes = [{}, {nvme: "nvme"}, {old: "r1.large"}, {old: "r1.huge", nvme: "nvme"}, {nvme: "sata"}, {old: "r2"}]
    landed = [
        [agents["metadata"]["name"] for agents in documents.of("DaemonSet") if selects(agents, labels)]
        for labels in nodes
    ]
    rest = ["tidemark-agent"]
    assert landed == [rest, ["tidemark-agent-nvme"], ["tidemark-agent-old"], ["tidemark-agent-nvme"], rest, rest]
    selectors = [agents["spec"]["selector"]["matchLabels"] for agents in documents.of("DaemonSet")]
    assert all(one != other for one, other in pairwise(sorted(selectors, key=str)))


def selects(agents: Document, labels: dict[str, str]) -> bool:
    """Whether a DaemonSet's required affinity takes a node with these labels: NotIn takes a node without the label too."""
    spec = agents["spec"]["template"]["spec"]
    (term,) = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    return all(
        (labels.get(one["key"]) in one["values"]) is (one["operator"] == "In") for one in term["matchExpressions"]
    )


def test_a_group_has_what_it_says_and_else_what_the_chart_says(chart: Chart) -> None:
    documents = chart.render(VALUES / "groups.yaml")
    agents = {name: pod(documents, "DaemonSet", name) for name in documents.names("DaemonSet")}
    given = {name: env(found["containers"][0]) for name, found in agents.items()}
    assert given["tidemark-agent-nvme"]["TIDEMARK_POOL"] == "fast=reflink:/srv/nvme bulk=reflink:/srv/disk"
    assert "tolerations" not in agents["tidemark-agent-nvme"]
    old = given["tidemark-agent-old"]
    assert (old["TIDEMARK_POOL_IMAGE"], old["TIDEMARK_POOL_SIZE"]) == ("/srv/tidemark/pool.img", "100Gi")
    assert "TIDEMARK_POOL_IMAGE_SPARSE" not in old, "the group said false"
    assert given["tidemark-agent"]["TIDEMARK_POOL_IMAGE_SPARSE"] == "true"
    assert agents["tidemark-agent-old"]["containers"][0]["resources"]["requests"]["cpu"] == "10m"
    assert agents["tidemark-agent"]["tolerations"] == [{"operator": "Exists"}]
    # A group with a file of its own does not get the pools of the others.
    mixed = chart.render(
        {
            "pools": [{"name": "fast", "path": "/srv/nvme"}],
            "nodeGroups": {"old": {"nodes": {"label": "a", "values": ["b"]}, "poolImage": {"size": "5Gi"}}},
        }
    )
    assert env(pod(mixed, "DaemonSet", "tidemark-agent-old")["containers"][0])["TIDEMARK_POOL_SIZE"] == "5Gi"
    assert "TIDEMARK_POOL" in env(pod(mixed, "DaemonSet", "tidemark-agent")["containers"][0])


def test_services_find_all_pods_and_ports_have_the_names_that_are_asked_for(chart: Chart) -> None:
    documents = chart.render(VALUES / "groups.yaml")
    for service in documents.of("Service"):
        wanted = service["spec"]["selector"]
        workloads = [
            one
            for kind in ("DaemonSet", "Deployment")
            for one in documents.of(kind)
            if wanted.items() <= one["spec"]["template"]["metadata"]["labels"].items()
        ]
        assert len(workloads) == (3 if wanted["app.kubernetes.io/component"] == "agent" else 1)
        for workload in workloads:
            spec = workload["spec"]["template"]["spec"]
            ports = {
                port["name"]
                for one in [*spec.get("initContainers", []), *spec["containers"]]
                for port in one.get("ports", [])
            }
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


@pytest.mark.parametrize("release", ["tidemark", "disks", "a" * 53])
def test_names_are_short_enough(chart: Chart, release: str) -> None:
    """Names of Services are DNS labels, and a Job's becomes the value of a label: 63 characters."""
    group = {"nodes": {"label": "a", "values": ["b"]}}
    documents = chart.render({"nodeGroups": {"fifteen-letters": group}}, release=release)
    for document in documents:
        assert len(document["metadata"]["name"]) <= 63
    assert any(name.endswith("-agent-fifteen-letters") for name in documents.names("DaemonSet"))
    with pytest.raises(Refused, match="propertyName"):
        chart.render({"nodeGroups": {"sixteen--letters": group}})


def test_the_disruption_budget_covers_the_controllers(chart: Chart) -> None:
    documents = chart.render()
    budget = documents.one("PodDisruptionBudget", "tidemark-controller")["spec"]
    labels = documents.one("Deployment", "tidemark-controller")["spec"]["template"]["metadata"]["labels"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()
    assert budget["maxUnavailable"] == 1


def test_the_page_on_security_lists_all_that_an_agent_has_of_its_node(chart: Chart) -> None:
    page = (CHART.parents[1] / "docs" / "explanation" / "security.md").read_text()
    table = page.split("### What agents have, and why")[1].split("\n\n")[2]
    rights = " ".join(row.split("|")[1] for row in table.splitlines()[2:])
    listed = re.findall(r"`([^`]+)`", rights)
    documents = chart.render(VALUES / "lvm.yaml")
    for agents in documents.of("DaemonSet"):
        found = agents["spec"]["template"]["spec"]
        assert [key for key in found if key.startswith("host") and f"{key}: true" not in listed] == []
        pools = {volume["name"] for volume in found["volumes"] if volume["name"].startswith("pool-")}
        for volume in found["volumes"]:
            if "hostPath" not in volume or volume["name"] in pools:
                continue
            path = volume["hostPath"]["path"].removeprefix("/var/lib/kubelet/")
            assert path in listed, path
    assert "privileged: true" in listed


def test_the_notes_name_the_command_that_a_volume_group_needs(chart: Chart) -> None:
    values = {"pools": [{"name": "fast", "volumeGroup": "fast"}]}
    assert "exec AGENT-POD -- tidemark pool create POOL --lvm" in chart.notes(values)
    assert "pool create" not in chart.notes({"pools": [{"name": "fast", "path": "/srv/fast"}]})
