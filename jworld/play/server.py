"""The HTTP server: the page, first images, recordings, and one WebSocket per player.

It listens on the loopback device unless another host is given; then every address needs a token. Other pages that a
browser shows cannot reach it: the names by which it is called, and the origin of connections, are checked.
"""

import asyncio
import contextlib
import hmac
import pathlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
from aiohttp import web

from jworld.play import protocol
from jworld.play.director import Director
from jworld.utils import limits

PAGE = pathlib.Path(__file__).parent / "page"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
#: Seconds between two signs of life of a connection.
_HEARTBEAT = 20.0
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_TOKEN = "token"


class Server:
    """The server of one director."""

    def __init__(self, director: Director, *, host: str, port: int, token: str | None = None) -> None:
        """Set up a server; without `token` one is made for a host that others can reach."""
        self._director, self._host, self._port = director, host, port
        self.token = token if token is not None else "" if host in LOOPBACK else secrets.token_urlsafe(18)
        self._connections = 0
        self.app = web.Application(middlewares=[self._guard])
        self.app.on_response_prepare.append(_add_headers)
        self.app.add_routes(
            [
                web.get("/", self._page),
                web.get("/page/{name}", self._page),
                web.get("/images/{name}.png", self._image),
                web.get("/recordings/{name}.mp4", self._recording),
                web.get("/socket", self._socket),
            ]
        )

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Context in which the server listens and players get turns; it yields the address of the page."""
        runner = web.AppRunner(self.app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        turns = asyncio.ensure_future(self._director.run())
        try:
            site = web.TCPSite(runner, self._host, self._port)
            await site.start()
            port = runner.addresses[0][1]
            host = f"[{self._host}]" if ":" in self._host else self._host
            yield f"http://{host}:{port}/" + (f"?{_TOKEN}={self.token}" if self.token else "")
            # Without this a failed task of turns would leave a server that only looks alive.
            if turns.done():
                turns.result()
        finally:
            turns.cancel()
            await self._director.close()
            await runner.cleanup()

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Refuse requests without the token, or that another page makes."""
        name = request.host.rpartition(":")[0] if request.host.rpartition(":")[2].isdigit() else request.host
        if not self.token and name.strip("[]") not in LOOPBACK:
            raise web.HTTPForbidden(text="This server only answers at its own address, such as 127.0.0.1.\n")
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != request.host:
            raise web.HTTPForbidden(text="Another page must not use this server.\n")
        if self.token:
            given = request.query.get(_TOKEN) or request.cookies.get(_TOKEN, "")
            if not hmac.compare_digest(given.encode(), self.token.encode()):
                raise web.HTTPForbidden(
                    text="The token is missing or wrong: open the address that jworld play printed.\n"
                )
        return await handler(request)

    async def _page(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info.get("name", "index.html")
        path = PAGE / name
        if path.parent != PAGE or not path.is_file():
            raise web.HTTPNotFound(text="There is no such file.\n")
        if name == "index.html" and self._connections >= limits.PLAY_CONNECTIONS:
            return web.FileResponse(PAGE / "busy.html", status=503, headers={"Retry-After": "30"})
        response = web.FileResponse(path)
        if self.token and name == "index.html":
            # Style sheets and scripts of the page have no token in their addresses.
            response.set_cookie(_TOKEN, self.token, httponly=True, samesite="Strict")
        return response

    async def _image(self, request: web.Request) -> web.StreamResponse:
        image = self._director.images.get(request.match_info["name"])
        if image is None:
            raise web.HTTPNotFound(text="There is no such image.\n")
        return web.Response(body=image.png, content_type="image/png")

    async def _recording(self, request: web.Request) -> web.StreamResponse:
        path = self._director.recordings.get(request.match_info["name"])
        if path is None or not path.is_file():
            raise web.HTTPNotFound(text="There is no such recording.\n")
        return web.FileResponse(path, headers={"Content-Type": "video/mp4"})

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        if self._connections >= limits.PLAY_CONNECTIONS:
            raise web.HTTPServiceUnavailable(text=f"{self._connections} players are connected, which is the limit.\n")
        self._connections += 1
        try:
            return await self._play(request)
        finally:
            self._connections -= 1

    async def _play(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(heartbeat=_HEARTBEAT, max_msg_size=limits.PLAY_IMAGE_BYTES + 1, compress=False)
        await socket.prepare(request)
        director, player = self._director, self._director.join(request.query.get("player", ""))
        player.socket = socket
        director.welcome(player)
        pump = asyncio.ensure_future(player.pump(socket))
        try:
            async for message in socket:
                if not player.bucket.take(time.monotonic()):
                    await socket.close(code=1008, message=b"too many messages")
                    break
                try:
                    if message.type is aiohttp.WSMsgType.TEXT:
                        director.receive(player, message.data)
                    elif message.type is aiohttp.WSMsgType.BINARY:
                        await director.receive_image(player, message.data)
                except protocol.MessageError as error:
                    player.send("error", text=str(error))
        finally:
            pump.cancel()
            # A later connection of the same player may have taken its place.
            if player.socket is socket:
                director.part(player)
        return socket


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)
