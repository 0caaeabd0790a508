"""csi.v1.Identity: who this is, what it can do, whether it is ready."""

from collections.abc import Callable, Mapping
from typing import Any

import grpc
import structlog
from google.protobuf.wrappers_pb2 import BoolValue

from csi_driver import __version__
from csi_driver._pb import csi_pb2, csi_pb2_grpc
from csi_driver.domain.errors import DriverError, Precondition
from csi_driver.rpc import tls

_Context = grpc.aio.ServicerContext[Any, Any]
_Service = csi_pb2.PluginCapability.Service
_Expansion = csi_pb2.PluginCapability.VolumeExpansion

SERVICES = (
    _Service.CONTROLLER_SERVICE,
    _Service.VOLUME_ACCESSIBILITY_CONSTRAINTS,
    _Service.GROUP_CONTROLLER_SERVICE,
)
"""Those of CSI 1.12 only: csi-sanity 5.5.0 and older sidecars fail on a number that they do not know."""

CERTIFICATES = "tidemark.dev/certificates"
"""Key in the manifest of GetPluginInfo on an agent's TLS listener: the fingerprint of what the next handshake uses."""

log = structlog.get_logger()


def certificate_manifest(identity: tls.TlsDirectory) -> Mapping[str, str]:
    """Return what an agent reports of its certificates; empty if the files are invalid, so that a rotation keeps waiting."""
    try:
        return {CERTIFICATES: identity.fingerprint()}
    except Precondition as error:
        log.error("certificates are not used", why=str(error))
        return {}


class Identity(csi_pb2_grpc.IdentityServicer):
    """`ready` says whether start-up is over and raises a DriverError where something is missing; it must not wait.

    `manifest` returns what GetPluginInfo reports besides, such as the certificates that an agent uses.
    """

    def __init__(self, name: str, ready: Callable[[], bool], manifest: Callable[[], Mapping[str, str]] = dict) -> None:
        self._name = name
        self._ready = ready
        self._manifest = manifest

    async def GetPluginInfo(
        self, _request: csi_pb2.GetPluginInfoRequest, _context: _Context
    ) -> csi_pb2.GetPluginInfoResponse:
        """Name and version."""
        manifest = self._manifest()
        return csi_pb2.GetPluginInfoResponse(name=self._name, vendor_version=__version__, manifest=manifest)

    async def GetPluginCapabilities(
        self, _request: csi_pb2.GetPluginCapabilitiesRequest, _context: _Context
    ) -> csi_pb2.GetPluginCapabilitiesResponse:
        """The same for every instance of a version, wherever it runs."""
        services = [csi_pb2.PluginCapability(service=_Service(type=kind)) for kind in SERVICES]
        online = csi_pb2.PluginCapability(volume_expansion=_Expansion(type=_Expansion.ONLINE))
        return csi_pb2.GetPluginCapabilitiesResponse(capabilities=[*services, online])

    async def Probe(self, _request: csi_pb2.ProbeRequest, _context: _Context) -> csi_pb2.ProbeResponse:
        """Not ready while starting; FAILED_PRECONDITION where a restart is needed. Takes no lock and waits for none."""
        try:
            ready = self._ready()
        except DriverError as error:
            raise Precondition(str(error)) from error
        return csi_pb2.ProbeResponse(ready=BoolValue(value=ready))
