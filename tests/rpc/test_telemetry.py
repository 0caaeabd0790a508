from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest
import structlog
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from support.gauge_values import GaugeValues

from csi_driver import __version__
from csi_driver.agent.gauges import NodeMetrics, PoolMetrics, UnhealthyVolume, VolumeMetrics, VolumesMetrics
from csi_driver.agent.metrics import AgentMetrics
from csi_driver.backends.base import SnapshotTimings
from csi_driver.controller.metrics import ControllerMetrics
from csi_driver.logging import configure_logging


@pytest.fixture(autouse=True)
def default_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level


def samples(telemetry: AgentMetrics) -> dict[tuple[str, tuple[str, ...]], float]:
    """By name and values of labels; each has the node's name, which is left out."""
    text = generate_latest(telemetry.registry).decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert sample.labels.pop("node") == "n1", sample
            found[sample.name, tuple(value for _, value in sorted(sample.labels.items(), reverse=True))] = sample.value
    return found


def figures(**changes: object) -> PoolMetrics:
    base = {"pool": "p", "total": 100, "used": 40, "committed": 70, "available": 130, "volumes": 3, "snapshots": 5}
    return PoolMetrics(**(base | changes))  # type: ignore[arg-type]


def test_calls_and_cuts() -> None:
    telemetry = AgentMetrics("n1")
    telemetry.call("csi.v1.Controller/CreateVolume", "OK", 0.2)
    telemetry.call("csi.v1.Controller/CreateVolume", "OK", 0.3)
    telemetry.after_cancel("csi.v1.Controller/CreateVolume", "ABORTED", 3.0)
    telemetry.snapshot_taken("p", SnapshotTimings(frozen=0.01, cloned=0.005))
    telemetry.snapshot_taken("p", SnapshotTimings(cloned=0.002))
    found = samples(telemetry)
    call = ("csi.v1.Controller/CreateVolume", "OK")
    assert found["tidemark_calls_total", call] == 2
    assert found["tidemark_call_seconds_sum", call] == 0.5
    # The old names are written for one release.
    for name in ("tidemark_csi_requests_completed_after_cancel_total", "tidemark_late_calls_total"):
        assert found[name, (call[0], "ABORTED")] == 1
    assert found["tidemark_freeze_seconds_count", ("p",)] == 1  # a snapshot without a mount froze nothing
    for name in ("tidemark_snapshot_clone_duration_seconds", "tidemark_snapshot_seconds"):
        assert found[f"{name}_count", ("p",)] == 2
    assert found["tidemark_build_info", (__version__,)] == 1


def test_gauges_are_read_at_the_scrape() -> None:
    telemetry = AgentMetrics("n1")
    now = [figures()]
    telemetry.watch(GaugeValues(now, NodeMetrics(loop_devices=2, abandoned=1)))
    found = samples(telemetry)
    assert found["tidemark_pool_total_bytes", ("p",)] == 100
    assert found["tidemark_pool_available_bytes", ("p",)] == 130
    assert found["tidemark_pool_full", ("p",)] == 0
    assert found["tidemark_loop_devices", ()] == 2
    assert found["tidemark_children_written_off", ()] == 1
    assert ("tidemark_pool_exclusive_bytes", ("p",)) not in found  # not walked yet: no figure rather than 0
    now[:] = [figures(used=41, full=True, exclusive=9, extents=7, walked=12.5)]
    found = samples(telemetry)
    assert found["tidemark_pool_full", ("p",)] == 1
    assert found["tidemark_pool_used_bytes", ("p",)] == 41
    assert found["tidemark_pool_exclusive_bytes", ("p",)] == 9
    assert found["tidemark_pool_walk_age_seconds", ("p",)] == 12.5


def test_volumes_in_trouble_and_checks() -> None:
    telemetry = AgentMetrics("n1")
    unwell = [UnhealthyVolume("p", "n:p:0", "shop", "db", "ShutDown")]
    telemetry.watch(GaugeValues(unhealthy=unwell))
    telemetry.checked("p", "mended")
    text = generate_latest(telemetry.registry).decode()
    labels = 'claim="db",condition="ShutDown",namespace="shop",node="n1",pool="p",volume="n:p:0"'
    assert f"tidemark_volume_unwell{{{labels}}} 1.0" in text
    assert 'tidemark_file_system_checks_total{node="n1",pool="p",result="mended"} 1.0' in text
    unwell.clear()
    assert "tidemark_volume_unwell{" not in generate_latest(telemetry.registry).decode()


def test_a_scrape_survives_what_changes_below_it_and_what_has_gone() -> None:
    telemetry = AgentMetrics("n1")
    left = [RuntimeError("dictionary changed size during iteration")] * 2

    class Changing(GaugeValues):
        def pools(self) -> list[PoolMetrics]:
            if left:
                raise left.pop()
            return [figures()]

        def node(self) -> NodeMetrics:
            raise OSError(5, "gone")

    telemetry.watch(Changing())
    found = samples(telemetry)
    assert found["tidemark_pool_volumes", ("p",)] == 3
    assert ("tidemark_loop_devices", ()) not in found


def test_registering_reads_no_pool() -> None:
    class Closed(GaugeValues):
        def pools(self) -> list[PoolMetrics]:
            raise AssertionError("read before it was asked for")

    AgentMetrics("n1").watch(Closed())


def test_volumes_have_series_of_their_own() -> None:
    telemetry = AgentMetrics("n1")
    scanned = VolumeMetrics("p", "n1:p:0", "shop", "db", size=100, snapshots=3, used=60, exclusive=20)
    new = VolumeMetrics("p", "n1:p:1", "", "", size=50, snapshots=0)
    telemetry.watch(GaugeValues(volumes=VolumesMetrics([scanned, new], {"p": 7})))
    found = samples(telemetry)
    db, other = ("n1:p:0", "p", "shop", "db"), ("n1:p:1", "p", "", "")
    assert [found[f"tidemark_volume_{name}", db] for name in ("size_bytes", "used_bytes", "exclusive_bytes")] == [
        100,
        60,
        20,
    ]
    assert (found["tidemark_volume_snapshots", db], found["tidemark_volume_snapshots", other]) == (3, 0)
    assert ("tidemark_volume_used_bytes", other) not in found  # not scanned yet: no figure rather than 0
    assert found["tidemark_pool_volumes_not_shown", ("p",)] == 7


def test_there_is_no_series_of_when_a_counter_began() -> None:
    """It would be one more for each counter and histogram."""
    agent, controller = AgentMetrics("n1"), ControllerMetrics()
    agent.snapshot_taken("p", SnapshotTimings(frozen=0.01, cloned=0.005))
    for metrics in (agent, controller):
        metrics.call("csi.v1.Controller/CreateVolume", "OK", 0.2)
        text = generate_latest(metrics.registry).decode()
        assert "tidemark_call_seconds_count" in text
        assert "_created" not in text


def test_json_lines_of_ours_and_of_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    structlog.get_logger().info("ours", volume="v")
    structlog.get_logger().debug("not shown")
    logging.getLogger("grpc").warning("theirs %s", "x")
    try:
        raise RuntimeError("what happened")
    except RuntimeError:
        structlog.get_logger().exception("failed")
    ours, theirs, failed = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (ours["event"], ours["level"], ours["volume"]) == ("ours", "info", "v")
    assert (theirs["event"], theirs["level"]) == ("theirs x", "warning")
    assert "what happened" in failed["exception"]
    assert ours["timestamp"].endswith("Z")


def test_console_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("console")
    structlog.get_logger().warning("ours", volume="v")
    logging.getLogger("grpc").warning("theirs")
    text = capsys.readouterr().err
    assert "volume=v" in text
    assert "theirs" in text
    assert "\x1b" not in text


def test_importing_telemetry_is_light() -> None:
    code = "import csi_driver.agent.metrics, sys; print('prometheus_client' in sys.modules, 'structlog' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]
