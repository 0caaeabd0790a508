"""What a controller may be told, and what is refused before anything is opened."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from csi_driver.cli.main import app
from csi_driver.controller import main as root
from csi_driver.controller.settings import ControllerSettings
from csi_driver.settings import BadSetting


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"namespace": "Not_A_Name"}, "--namespace"),
        ({"release": ""}, "--release"),
        ({"controller_secret": "mine"}, "--agent-secret"),
        ({"certificates": "relative"}, "--certificates"),
        ({"snapshots_in_flight": 0}, "--snapshots-in-flight-per-node"),
        ({"api_proxy": "proxy:3128"}, "--api-proxy"),
        ({"api_proxy": "socks5://proxy:1080"}, "--api-proxy"),
        ({"api_proxy": "http://proxy"}, "--api-proxy"),
    ],
)
def test_what_cannot_be_meant_is_refused(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(BadSetting, match=word):
        ControllerSettings(**wrong)


def test_every_option_is_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the chart sets them."""
    told: list[ControllerSettings] = []

    async def run(settings: ControllerSettings) -> int:
        told.append(settings)
        return 0

    monkeypatch.setattr(root, "run_controller", run)
    environment = {
        "CSI_ENDPOINT": "unix:///csi/csi.sock",
        "TIDEMARK_NAMESPACE": "storage",
        "TIDEMARK_RELEASE": "mine-tidemark",
        "TIDEMARK_DRIVER_NAME": "csi.example.org",
        "TIDEMARK_CONTROLLER_SECRET": "a",
        "TIDEMARK_AGENT_SECRET": "b",
        "TIDEMARK_METRICS_ADDRESS": ":9808",
        "TIDEMARK_WEBHOOK_ADDRESS": "[::1]:9443",
        "TIDEMARK_SNAPSHOTS_IN_FLIGHT_PER_NODE": "7",
        "TIDEMARK_LOG_FORMAT": "json",
        "POD_NAME": "controller-1",
        "KUBECONFIG": "/etc/kubeconfig",
        "TIDEMARK_API_PROXY": "http://me:secret@proxy.example.org:3128",
    }
    done = CliRunner().invoke(app, ["controller", "--no-operator"], env=environment)
    assert done.exit_code == 0, done.output
    assert told == [
        ControllerSettings(
            endpoint="unix:///csi/csi.sock",
            namespace="storage",
            release="mine-tidemark",
            driver_name="csi.example.org",
            controller_secret="a",
            agent_secret="b",
            metrics_address=("0.0.0.0", 9808),
            webhook_address=("::1", 9443),
            pod_name="controller-1",
            kubeconfig="/etc/kubeconfig",
            api_proxy="http://me:secret@proxy.example.org:3128",
            operator=False,
            snapshots_in_flight=7,
            log_format="json",
        )
    ]


def test_a_proxys_password_is_not_reported() -> None:
    for command in (["controller"], ["node", "list"], ["volume", "list", "--orphans"], ["uninstall-check"]):
        done = CliRunner().invoke(app, command, env={"TIDEMARK_API_PROXY": "http://me:secret@proxy"})
        assert done.exit_code == 2
        assert "--api-proxy" in done.output
        assert "secret" not in done.output


def test_a_wrong_option_is_wrong_usage() -> None:
    done = CliRunner().invoke(app, ["controller", "--agent-secret", "b"])
    assert done.exit_code == 2
    assert "--controller-secret" in done.output
