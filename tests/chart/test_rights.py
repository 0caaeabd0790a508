"""Rights: one list, a reason for each rule, and nothing in the manifests that is not in it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from chart_rig import CHART, EVERYTHING, VALUES, Chart, Document, Rendered

RIGHTS: dict[str, Document] = yaml.safe_load((CHART / "files" / "rights.yaml").read_text())
RULES = [
    (part, scope, rule)
    for part, spec in RIGHTS.items()
    for scope in ("cluster", "namespace")
    for rule in spec.get(scope, [])
]


def rules(documents: Rendered, account: str) -> list[Document]:
    """All rules that an account has, through whatever binding."""
    found: list[Document] = []
    for kind, role in (("ClusterRoleBinding", "ClusterRole"), ("RoleBinding", "Role")):
        for binding in documents.of(kind):
            if account in {subject["name"] for subject in binding["subjects"]}:
                found += documents.one(role, binding["roleRef"]["name"])["rules"]
    return found


def allowed(documents: Rendered, account: str, verb: str, resource: str) -> list[Document]:
    """The rules by which an account may do that."""
    return [rule for rule in rules(documents, account) if verb in rule["verbs"] and resource in rule["resources"]]


@pytest.mark.parametrize(
    ("part", "scope", "rule"), RULES, ids=[f"{part}-{number}" for number, (part, _, _) in enumerate(RULES)]
)
def test_every_rule_has_a_reason_and_no_wildcard(part: str, scope: str, rule: Document) -> None:
    assert len(rule["reason"]) > 20, rule
    assert set(rule) <= {"reason", "when", "apiGroups", "resources", "resourceNames", "verbs"}
    assert "*" not in str(rule)


def test_the_reasons_stand_in_the_manifests(chart: Chart) -> None:
    text = chart.text(VALUES / "everything.yaml")
    for _, _, rule in RULES:
        if rule.get("when") != "ownCertificates":  # the values of this set bring their own
            assert f"# {rule['reason']}\n" in text


def test_agents_have_no_rights_and_no_token(chart: Chart) -> None:
    for values in (None, VALUES / "everything.yaml", VALUES / "groups.yaml"):
        documents = chart.render(values)
        (account,) = [name for name in documents.names("ServiceAccount") if name.endswith("-agent")]
        assert rules(documents, account) == []
        for agents in documents.of("DaemonSet"):
            pod = agents["spec"]["template"]["spec"]
            assert pod["serviceAccountName"] == account
            assert pod["automountServiceAccountToken"] is False


def test_no_manifest_grants_what_is_not_in_the_list(chart: Chart) -> None:
    listed = [{key: rule[key] for key in ("apiGroups", "resources", "verbs")} for _, _, rule in RULES]
    documents = chart.render(VALUES / "everything.yaml")
    bound = {
        binding["roleRef"]["name"] for kind in ("ClusterRoleBinding", "RoleBinding") for binding in documents.of(kind)
    }
    for kind in ("ClusterRole", "Role"):
        for role in documents.of(kind):
            if role["metadata"]["name"] in bound:
                for rule in role["rules"]:
                    assert {key: rule[key] for key in ("apiGroups", "resources", "verbs")} in listed


def test_secrets_are_reached_by_name_in_the_release_alone(chart: Chart) -> None:
    documents = chart.render()
    found = allowed(documents, "tidemark-controller", "get", "secrets")
    assert [rule["resourceNames"] for rule in found] == [
        ["tidemark-authority", "tidemark-controller-tls", "tidemark-agent-tls"]
    ]
    assert not allowed(documents, "tidemark-controller", "delete", "secrets")
    for role in documents.of("ClusterRole"):
        assert not any("secrets" in rule["resources"] for rule in role["rules"]), role["metadata"]["name"]
    given = chart.render({"tls": {"controllerSecret": "mine", "agentSecret": "theirs"}})
    assert [rule["resourceNames"] for rule in allowed(given, "tidemark-controller", "get", "secrets")] == [
        ["mine", "theirs"]
    ]
    assert not allowed(given, "tidemark-controller", "create", "secrets")


def test_the_webhook_that_may_be_changed_is_ours(chart: Chart) -> None:
    (rule,) = allowed(chart.render(), "tidemark-controller", "patch", "mutatingwebhookconfigurations")
    assert rule["resourceNames"] == ["tidemark-pin"]
    off = chart.render({"webhook": {"enabled": False}})
    assert not allowed(off, "tidemark-controller", "patch", "mutatingwebhookconfigurations")


def test_the_uninstallation_may_only_look(chart: Chart) -> None:
    assert {verb for rule in rules(chart.render(), "tidemark-uninstall") for verb in rule["verbs"]} == {"list"}


def test_what_is_off_takes_its_rights_along(chart: Chart) -> None:
    everything = rules(chart.render(), "tidemark-controller")
    least = rules(chart.render(VALUES / "least.yaml"), "tidemark-controller")
    assert len(least) < len(everything)
    groups = {group for rule in least for group in rule["apiGroups"]}
    assert not groups & {
        "snapshot.storage.k8s.io",
        "groupsnapshot.storage.k8s.io",
        "tidemark.dev",
        "admissionregistration.k8s.io",
    }


@pytest.mark.parametrize(
    ("role", "resources", "writes"),
    [
        ("view", {"volumerollbacks", "snapshotschedules"}, False),
        ("edit", {"snapshotschedules"}, True),
        ("admin", {"volumerollbacks"}, True),
    ],
)
def test_roles_for_users_are_added_to_the_clusters_own(
    chart: Chart, role: str, resources: set[str], writes: bool
) -> None:
    found: Any = chart.render(serves=EVERYTHING).one("ClusterRole", f"tidemark-{role}")
    added = {label for label in found["metadata"]["labels"] if "aggregate-to" in label}
    assert added == {f"rbac.authorization.k8s.io/aggregate-to-{role}"}
    (rule,) = found["rules"]
    assert (rule["apiGroups"], set(rule["resources"])) == (["tidemark.dev"], resources)
    assert ("create" in rule["verbs"]) is writes
