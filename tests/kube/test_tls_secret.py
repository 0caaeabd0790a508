"""Certificates from a Secret on a controller's disk: exchanged whole, told of, and kept while the API is away."""

from __future__ import annotations

import stat
import threading
from base64 import b64encode
from pathlib import Path

import pytest
from support.fake_api import Call, FakeApi, Fault

from csi_driver.domain.certificates import FILES, fingerprint
from csi_driver.domain.errors import Precondition, Unavailable
from csi_driver.kube.resources import PODS, SECRETS
from csi_driver.kube.tls_secret import LOADED_PREFIX, TlsSecretFiles, loaded_by_pods, replace_atomically, report_key

NS = "tidemark"


def put(fake: FakeApi, number: int, **more: object) -> None:
    data = {name: b64encode(f"{number} {name}".encode()).decode() for name in FILES}
    fake.put(SECRETS, {"metadata": {"name": "tls", **more}, "data": data}, NS)


def told(fake: FakeApi) -> dict[str, str]:
    found = fake.get(SECRETS, "tls", NS)
    assert found is not None
    return {
        key: value for key, value in found["metadata"].get("annotations", {}).items() if key.startswith(LOADED_PREFIX)
    }


async def test_the_files_follow_the_secret(fake: FakeApi, tmp_path: Path) -> None:
    material = TlsSecretFiles(await fake.connect(), NS, "tls", tmp_path / "a" / "b", "pod-1")
    with pytest.raises(Unavailable, match="tidemark/tls does not exist yet"):
        await material.refresh()
    for number in (1, 2):
        put(fake, number)
        await material.refresh()
        for name in FILES:
            path = tmp_path / "a" / "b" / name
            assert path.read_text() == f"{number} {name}"
            assert stat.S_IMODE(path.resolve().stat().st_mode) == 0o600
            assert stat.S_IMODE(path.resolve().parent.stat().st_mode) == 0o700
        assert told(fake) == {
            f"{LOADED_PREFIX}pod-1": fingerprint(f"{number} ca.crt".encode(), f"{number} tls.crt".encode())
        }
        await material.refresh()
        assert (tmp_path / "a" / "b" / "..data").readlink() == Path(f"..{number}"), "what did not change stays"
        assert len(fake.asked("patch", SECRETS)) == number, "nor told again"
    assert len(list((tmp_path / "a" / "b").iterdir())) == 1 + 1 + len(FILES), "the old ones are gone"


async def test_a_start_over_old_files(fake: FakeApi, tmp_path: Path) -> None:
    """A container that starts again finds what the last one left, and a link half made."""
    replace_atomically(tmp_path, dict.fromkeys(FILES, b"old"))
    (tmp_path / "..tmp").symlink_to("nowhere")
    put(fake, 3)
    await TlsSecretFiles(await fake.connect(), NS, "tls", tmp_path).refresh()
    assert {name: (tmp_path / name).read_text() for name in FILES} == {name: f"3 {name}" for name in FILES}
    assert not (tmp_path / "..tmp").is_symlink()
    assert told(fake) == {}, "nobody tells of a Secret that is the user's"


async def test_what_is_wrong_changes_nothing(fake: FakeApi, tmp_path: Path) -> None:
    put(fake, 1)
    material = TlsSecretFiles(await fake.connect(), NS, "tls", tmp_path)
    await material.refresh()
    for data in ({"tls.key": None}, {"tls.key": "no base64"}):
        put(fake, 2)
        fake.change(SECRETS, "tls", {"data": data}, NS)
        with pytest.raises(Precondition, match=r"lacks one of ca\.crt, tls\.crt, tls\.key") as caught:
            await material.refresh()
        assert "no base64" not in str(caught.value)

    def away(call: Call) -> None:
        raise Fault(503)

    fake.hooks.append(away)
    with pytest.raises(Unavailable):
        await material.refresh()
    assert {(tmp_path / name).read_text() for name in FILES} == {f"1 {name}" for name in FILES}


def test_a_reader_never_sees_some_of_each(tmp_path: Path) -> None:
    """By the link that rpc.tls follows once, as with a mounted Secret."""
    from csi_driver.rpc.tls import TlsDirectory

    replace_atomically(tmp_path, dict.fromkeys(FILES, b"0"))
    over = threading.Event()

    def write() -> None:
        for number in range(300):
            replace_atomically(tmp_path, {name: str(number).encode() for name in FILES})
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    reads = 0
    while not over.is_set():
        assert len(set(TlsDirectory(tmp_path).read())) == 1
        reads += 1
    writer.join()
    assert reads


async def test_pods_that_run_are_waited_for(fake: FakeApi) -> None:
    labels = {"app": "controller"}
    states = {
        "our-1": ("n", "Running"),
        "our-2": ("n", "Pending"),
        "our-3": ("", "Pending"),
        "our-4": ("n", "Failed"),
        "their-1": ("n", "Running"),
    }
    for name, (node, phase) in states.items():
        spec = {"nodeName": node} if node else {}
        fake.put(PODS, {"metadata": {"name": name, "labels": labels}, "spec": spec, "status": {"phase": phase}}, NS)
    fake.put(PODS, {"metadata": {"name": "our-5"}, "spec": {"nodeName": "n"}}, NS)
    put(fake, 1, annotations={report_key("our-1"): "abc", report_key("our-0"): "abc"})
    secret = fake.get(SECRETS, "tls", NS)
    assert secret is not None
    assert await loaded_by_pods(await fake.connect(), NS, "app=controller", "our-", secret) == {
        "our-1": "abc",
        "our-2": "",
    }
    assert len(report_key("x" * 200).removeprefix(LOADED_PREFIX)) <= 63
