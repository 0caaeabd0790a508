"""What a pod's environment changes of what a daemon does: its options, and nothing that was meant for others."""

import os
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.cli import main
from csi_driver.environment import is_ambient, remove_ambient, restart_without_ambient, without_ambient, without_proxies

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "reference" / "environment.md"
AMBIENT = {
    **dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY", "ALL_PROXY", "grpc_proxy"), "http://127.0.0.1:9"),
    **dict.fromkeys(("NO_PROXY", "no_proxy", "no_grpc_proxy"), "10.0.0.0/8"),
    "GRPC_DNS_RESOLVER": "native",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": "/nowhere",
    "SSL_CERT_FILE": "/nowhere",
    "SSL_CERT_DIR": "/nowhere",
    "SSLKEYLOGFILE": "/nowhere",
    "OPENSSL_CONF": "/nowhere",
    "PYTHONASYNCIODEBUG": "1",
    "PYTHONTZPATH": "/nowhere",
    "PYTHONWARNINGS": "error",
    "PROMETHEUS_MULTIPROC_DIR": "/nowhere",
    "AIOHTTP_NO_EXTENSIONS": "1",
    "NETRC": "/nowhere",
    "TZ": "America/Lima",
    "LANG": "de_DE.ISO-8859-1",
    "LC_ALL": "tr_TR",
}
MEANT = {
    "PATH": "/usr/bin",
    "HOME": "/",
    "TMPDIR": "/tmp",
    "HOSTNAME": "controller-1",
    "KUBECONFIG": "/etc/kubeconfig",
    "KUBERNETES_SERVICE_HOST": "10.96.0.1",
    "KUBERNETES_SERVICE_PORT": "443",
    "POD_NAME": "controller-1",
    "CSI_ENDPOINT": "unix:///csi/csi.sock",
    "TIDEMARK_API_PROXY": "http://proxy:3128",
    "MALLOC_ARENA_MAX": "2",
    "PYTHONUNBUFFERED": "1",
    "PYTHONPATH": "/src",
    "GRPC_VERBOSITY": "DEBUG",
    "LC_CTYPE": "C.UTF-8",  # Python sets it by itself where there is no locale
}


def test_what_was_meant_for_others_is_left_out() -> None:
    assert without_ambient(AMBIENT | MEANT) == MEANT


@given(st.dictionaries(st.sampled_from(sorted(AMBIENT | MEANT)), st.sampled_from(["", "C", "C.UTF-8", "x", "0"])))
def test_a_daemon_that_has_begun_again_does_not_do_so_once_more(environment: dict[str, str]) -> None:
    left = without_ambient(environment)
    assert not any(is_ambient(name, value) for name, value in left.items())
    assert without_ambient(left) == left


@pytest.fixture
def began(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    seen: list[tuple[list[str], dict[str, str]]] = []

    def execve(path: str, argv: list[str], environment: dict[str, str]) -> None:
        assert path == sys.executable
        seen.append((argv[1:], environment))

    monkeypatch.setattr("os.execve", execve)
    for name in list(os.environ):
        if is_ambient(name, os.environ[name]):
            monkeypatch.delenv(name)
    return seen


@pytest.mark.parametrize("words", [["controller", "--no-operator"], ["uninstall-check", "--no-snapshots"]])
def test_what_runs_in_a_pod_begins_again_without_them(
    began: list[tuple[list[str], dict[str, str]]], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """A controller; and the chart's check, or what another program was given would refuse an uninstallation."""
    monkeypatch.setattr(main, "app", lambda **_: None)
    monkeypatch.setattr(sys, "argv", ["tidemark", *words])
    main.main()
    assert began == [], "there is nothing to leave out"
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("SSLKEYLOGFILE", "/nowhere/keys")
    monkeypatch.setenv("TIDEMARK_NAMESPACE", "storage")
    main.main()
    ((argv, environment),) = began
    assert argv == ["-P", "-m", "csi_driver.cli.main", *words]
    assert environment["TIDEMARK_NAMESPACE"] == "storage"
    assert environment.keys().isdisjoint({"HTTPS_PROXY", "SSLKEYLOGFILE"})


def test_a_command_of_a_person_keeps_them(
    began: list[tuple[list[str], dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their time zone, and the proxy of the program that a kubeconfig calls for a token."""
    monkeypatch.setattr(main, "app", lambda **_: None)
    monkeypatch.setattr(sys, "argv", ["tidemark", "node", "list"])
    monkeypatch.setenv("TZ", "America/Lima")
    main.main()
    assert began == []


def test_an_agent_begins_without_them(began: list[tuple[list[str], dict[str, str]]]) -> None:
    restart_without_ambient(["-m", "csi_driver.agent", "{}"], AMBIENT | MEANT)
    assert began == [(["-P", "-m", "csi_driver.agent", "{}"], MEANT)]


def test_grpc_is_loaded_without_what_was_set_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPC_DNS_RESOLVER", "native")
    monkeypatch.setenv("GRPC_TRACE", "http")
    remove_ambient("GRPC_")
    assert "GRPC_DNS_RESOLVER" not in os.environ
    assert os.environ["GRPC_TRACE"] == "http"


def test_proxies_are_hidden_for_a_while_and_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (AMBIENT | MEANT).items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with without_proxies():
        hidden = {name for name in AMBIENT | MEANT if name not in os.environ}
    assert hidden == {
        *("http_proxy", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"),
        *("grpc_proxy", "NO_PROXY", "no_proxy", "no_grpc_proxy"),
    }
    assert dict(os.environ) == before


def test_the_reference_has_a_line_for_each() -> None:
    named = set(re.findall(r"`([A-Za-z_*]+)`", PAGE.read_text()))
    for name in AMBIENT:
        assert any(re.fullmatch(pattern.replace("*", ".*"), name) for pattern in named if pattern.strip("*_")), name
