"""/healthz, /readyz and /metrics of the controller, on its own event loop."""

from collections.abc import Callable

from aiohttp import web

from csi_driver.domain.errors import DriverError, Precondition

TEXT = "text/plain; version=0.0.4; charset=utf-8"


class Health:
    """`ready` raises a DriverError that says what is missing; an answer at all is what /healthz tells."""

    def __init__(self, address: tuple[str, int], ready: Callable[[], None], metrics: Callable[[], bytes]) -> None:
        self._host, self.port = address
        self._ready = ready
        self._metrics = metrics
        app = web.Application()
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._figures),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self) -> None:
        """Bind and serve; port 0 takes any, and `port` tells which. Raises Precondition where it cannot be had."""
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self.port).start()
        except OSError as error:
            raise Precondition(
                f"--metrics-address {self._host}:{self.port} cannot be served ({error.strerror}): choose another, or "
                "leave it out"
            ) from error
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Serve no more."""
        await self._runner.cleanup()

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        try:
            self._ready()
        except DriverError as error:
            return web.Response(text=f"{error}\n", status=503)
        return web.Response(text="ready\n")

    async def _figures(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._metrics(), headers={"Content-Type": TEXT})
