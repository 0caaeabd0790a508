"""Calls of csi.v1.Controller that this driver has no use for, at the agent as at the controller."""

from typing import Any

import grpc

from csi_driver._pb import csi_pb2, csi_pb2_grpc
from csi_driver.domain.errors import Unsupported

_Context = grpc.aio.ServicerContext[Any, Any]


class NotOffered(csi_pb2_grpc.ControllerServicer):
    """Answers UNIMPLEMENTED with the reason; a subclass has the other calls."""

    async def ControllerPublishVolume(
        self, _request: csi_pb2.ControllerPublishVolumeRequest, _context: _Context
    ) -> csi_pb2.ControllerPublishVolumeResponse:
        """Not served."""
        raise Unsupported("ControllerPublishVolume is not offered: volumes need no attach step (attachRequired: false)")

    async def ControllerUnpublishVolume(
        self, _request: csi_pb2.ControllerUnpublishVolumeRequest, _context: _Context
    ) -> csi_pb2.ControllerUnpublishVolumeResponse:
        """Not served."""
        raise Unsupported(
            "ControllerUnpublishVolume is not offered: volumes need no attach step (attachRequired: false)"
        )

    async def ControllerModifyVolume(
        self, _request: csi_pb2.ControllerModifyVolumeRequest, _context: _Context
    ) -> csi_pb2.ControllerModifyVolumeResponse:
        """Not served."""
        raise Unsupported("ControllerModifyVolume is not offered: this driver has no mutable parameters")

    async def ControllerListVolumeHealth(
        self, _request: csi_pb2.ControllerListVolumeHealthRequest, _context: _Context
    ) -> csi_pb2.ControllerListVolumeHealthResponse:
        """Not served."""
        raise Unsupported("ControllerListVolumeHealth is not offered: this driver does not have LIST_VOLUME_HEALTH")

    async def ControllerGetVolumeHealth(
        self, _request: csi_pb2.ControllerGetVolumeHealthRequest, _context: _Context
    ) -> csi_pb2.ControllerGetVolumeHealthResponse:
        """Not served."""
        raise Unsupported("ControllerGetVolumeHealth is not offered: this driver does not have GET_VOLUME_HEALTH")
