"""A small kubelet: watches its plugins_registry as the real one does, asks who appears, takes him on or refuses."""

from __future__ import annotations

import asyncio
import ctypes
import os
import stat
import struct
from pathlib import Path

import grpc

from csi_driver._pb import csi_pb2, csi_pb2_grpc
from csi_driver._pb import pluginregistration_pb2 as pb
from csi_driver._pb import pluginregistration_pb2_grpc as pb_grpc

_CREATE, _MOVED_TO, _DELETE, _MOVED_FROM = 0x100, 0x80, 0x200, 0x40
_HEAD = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)
_OWN = (("grpc.use_local_subchannel_pool", 1),)
"""Channels of one path else share a connection, and with it the pause after one that a dead socket refused."""


class Kubelet:
    """`drivers` is what its node's CSINode would list: driver name to node id.

    Names that begin with a dot are ignored; a name that appears, also by a rename over an old one, is asked; a name that
    is removed takes its driver away.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.drivers: dict[str, str] = {}
        self.heard: list[tuple[str, str]] = []
        """(what, name): appeared, removed, registered, refused, deaf (nobody listened)."""
        self.refusals: list[str] = []
        """Refuses once for each of these, in their order."""
        self._changed = asyncio.Event()
        self._fd = -1
        self._calls: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Kubelet:
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        watched = _libc.inotify_add_watch(
            self._fd, os.fsencode(self.directory), _CREATE | _MOVED_TO | _DELETE | _MOVED_FROM
        )
        assert watched >= 0, os.strerror(ctypes.get_errno())
        asyncio.get_running_loop().add_reader(self._fd, self._read)
        for name in sorted(os.listdir(self.directory)):  # what is there when it starts
            self._appeared(name)
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    async def until(self, what: str, name: str, times: int = 1) -> None:
        """Wait until something was heard so often."""
        async with asyncio.timeout(30):
            while self.heard.count((what, name)) < times:
                self._changed.clear()
                await self._changed.wait()

    def _read(self) -> None:
        data = os.read(self._fd, 65536)
        while data:
            _, mask, _, length = _HEAD.unpack_from(data)
            name = data[_HEAD.size : _HEAD.size + length].rstrip(b"\0").decode()
            data = data[_HEAD.size + length :]
            if mask & (_CREATE | _MOVED_TO):
                self._appeared(name)
            elif mask & _DELETE and not name.startswith("."):
                self._on_message("removed", name)
                self.drivers.pop(name.removesuffix("-reg.sock"), None)

    def _appeared(self, name: str) -> None:
        if name.startswith(".") or not stat.S_ISSOCK((self.directory / name).lstat().st_mode):
            return
        self._on_message("appeared", name)
        call = asyncio.get_running_loop().create_task(self._register(name))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _register(self, name: str) -> None:
        async with grpc.aio.insecure_channel(f"unix://{self.directory}/{name}", options=_OWN) as channel:
            plugin = pb_grpc.RegistrationStub(channel)
            try:
                info = await plugin.GetInfo(pb.InfoRequest(), timeout=60)
            except grpc.aio.AioRpcError:
                self._on_message("deaf", name)
                return
            why = self.refusals.pop(0) if self.refusals else ""
            if not why:
                why = await self._take_on(info)
            if why:
                self.drivers.pop(info.name, None)
            await plugin.NotifyRegistrationStatus(
                pb.RegistrationStatus(plugin_registered=not why, error=why), timeout=60
            )
            self._on_message("refused" if why else "registered", name)

    async def _take_on(self, info: pb.PluginInfo) -> str:
        if info.type != "CSIPlugin" or not any(v.startswith("1.") for v in info.supported_versions):
            return f"no CSI driver of a known version: {info}"
        async with grpc.aio.insecure_channel(f"unix://{info.endpoint}", options=_OWN) as channel:
            try:
                node = await csi_pb2_grpc.NodeStub(channel).NodeGetInfo(csi_pb2.NodeGetInfoRequest(), timeout=60)
            except grpc.aio.AioRpcError as error:
                return f"NodeGetInfo: {error.details()}"
        self.drivers[info.name] = node.node_id
        return ""

    def _on_message(self, what: str, name: str) -> None:
        self.heard.append((what, name))
        self._changed.set()
