"""OpenShift: every pod of the chart has constraints that it fits, for its own account and no other."""

from __future__ import annotations

from typing import Any

import pytest
from chart_rig import EVERYTHING, VALUES, Chart, Document, Rendered

OPENSHIFT = (*EVERYTHING, "security.openshift.io/v1/SecurityContextConstraints")
KIND = "SecurityContextConstraints"


def pods(documents: Rendered) -> list[Document]:
    """The specifications of all pods."""
    return [one["spec"]["template"]["spec"] for one in documents if "template" in (one.get("spec") or {})]


def fits(pod: Document, constraints: Document) -> bool:
    """Whether a pod asks for nothing that the constraints do not allow, as far as our pods ask for anything."""
    if any(pod.get(f"host{what}") and not constraints[f"allowHost{what}"] for what in ("IPC", "Network", "PID")):
        return False
    context = pod.get("securityContext", {})
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        own: dict[str, Any] = {**context, **container["securityContext"]}
        user = own["runAsUser"]
        if own.get("privileged") and not constraints["allowPrivilegedContainer"]:
            return False
        if own.get("allowPrivilegeEscalation", True) and not constraints["allowPrivilegeEscalation"]:
            return False
        if constraints["readOnlyRootFilesystem"] and not own["readOnlyRootFilesystem"]:
            return False
        if constraints["runAsUser"]["type"] == "MustRunAsNonRoot" and user == 0:
            return False
        if set(own.get("capabilities", {}).get("add", [])) - set(constraints["allowedCapabilities"]):
            return False
    kinds = {next(key for key in volume if key != "name") for volume in pod.get("volumes", [])}
    if pod["automountServiceAccountToken"]:
        kinds.add("projected")
    if "hostPath" in kinds and not constraints["allowHostDirVolumePlugin"]:
        return False
    return constraints["volumes"] == ["*"] or kinds <= set(constraints["volumes"])


@pytest.mark.parametrize("values", [None, *(VALUES / f"{name}.yaml" for name in ("everything", "groups", "lvm"))])
def test_every_pod_fits_the_constraints_of_its_account(chart: Chart, values: Any) -> None:
    documents = chart.render(values, serves=OPENSHIFT)
    for pod in pods(documents):
        user = f"system:serviceaccount:tidemark:{pod['serviceAccountName']}"
        (own,) = [one for one in documents.of(KIND) if user in one["users"]]
        assert fits(pod, own), pod["serviceAccountName"]
    accounts = {f"system:serviceaccount:tidemark:{name}" for name in documents.names("ServiceAccount")}
    users = [user for one in documents.of(KIND) for user in one["users"]]
    assert sorted(users) == sorted(accounts)
    assert all(one["groups"] == [] for one in documents.of(KIND))


def test_only_the_agents_may_be_privileged(chart: Chart) -> None:
    documents = chart.render(serves=OPENSHIFT)
    privileged = [one for one in documents.of(KIND) if one["allowPrivilegedContainer"]]
    assert [one["users"] for one in privileged] == [["system:serviceaccount:tidemark:tidemark-agent"]]
    for one in documents.of(KIND):
        assert not any(one[f"allowHost{what}"] for what in ("IPC", "Network", "PID", "Ports"))


def test_processes_of_the_host_are_allowed_for_agents_with_volume_groups_alone(chart: Chart) -> None:
    documents = chart.render(VALUES / "lvm.yaml", serves=OPENSHIFT)
    allowed = [one for one in documents.of(KIND) if one["allowHostPID"]]
    assert [one["users"] for one in allowed] == [["system:serviceaccount:tidemark:tidemark-agent"]]
    for one in documents.of(KIND):
        assert not any(one[f"allowHost{what}"] for what in ("IPC", "Network", "Ports"))


@pytest.mark.parametrize(
    ("setting", "serves", "there"),
    [
        ("auto", EVERYTHING, False),
        ("auto", OPENSHIFT, True),
        (False, OPENSHIFT, False),
        (True, EVERYTHING, True),
    ],
)
def test_they_are_made_where_the_cluster_has_them_or_the_user_says_so(
    chart: Chart, setting: Any, serves: tuple[str, ...], there: bool
) -> None:
    documents = chart.render({"openshift": {"securityContextConstraints": setting}}, serves=serves)
    assert bool(documents.of(KIND)) is there


def test_what_is_off_has_no_account_in_them(chart: Chart) -> None:
    documents = chart.render(VALUES / "least.yaml", serves=OPENSHIFT)
    (others,) = [one["users"] for one in documents.of(KIND) if not one["allowPrivilegedContainer"]]
    assert others == ["system:serviceaccount:tidemark:tidemark-controller"]
