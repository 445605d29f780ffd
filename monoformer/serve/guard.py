"""What stands before every route: who may ask, from where, how much they may send; and the count of the answers.

Knows nothing of models or bodies. Invariant: a body reaches a route whole and within its limit, or not at all.
"""

import asyncio
import base64
import binascii
import secrets
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from monoformer.config.serve import Limits, ServeConfig
from monoformer.serve.errors import ApiError

OPEN = ("/health", "/ready")
"""Paths that need no key: what looks after the server may not have one."""

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


class Guard:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, *, config: ServeConfig, count: Callable[[str, int, float], None]) -> None:
        """`count` is told the route, the status and the seconds of every answer."""
        self.app, self.config, self.count = app, config, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 499

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            headers = Headers(scope=scope)
            try:
                self._check(scope, headers)
                body = await read_body(headers, receive, limits=self.config.limits)
            except ApiError as error:
                await error.response()(scope, receive, counted)
                return
            await self.app(scope, replayed(body, receive), counted)
        except Exception:
            status = 500
            raise
        finally:
            route = getattr(scope.get("route"), "path", "")
            self.count(route or "other", status, time.perf_counter() - start)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Refuse whoever has no key, and web pages that reach a server on loopback under a name of their own."""
        keys = self.config.api_key
        preflight = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
        if not keys and self.config.is_local:
            host = headers.get("host", "")
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if name.lower() not in (*LOCAL_NAMES, self.config.host):
                raise ApiError("this server is for its own machine; ask it as localhost", status=403)
        if not keys or scope["path"] in OPEN or preflight:
            return
        given = credentials(headers.get("authorization", ""))
        if not any(secrets.compare_digest(given.encode(), key.encode()) for key in keys):
            asks = {} if scope["path"].startswith("/v1/") else {"WWW-Authenticate": 'Basic realm="MonoFormer"'}
            raise ApiError(
                "this server needs an API key: Authorization: Bearer KEY",
                status=401,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer", **asks},
            )


def credentials(authorization: str) -> str:
    """The key in a header: a bearer's, or the password that a browser asks for; '' without one."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return ""


async def read_body(headers: Headers, receive: Receive, *, limits: Limits) -> bytes:
    """The whole body. Raises ApiError for one that is too large or too slow."""
    large = ApiError(f"a request may have at most {limits.body} bytes here", status=413, code="request_too_large")
    length = headers.get("content-length", "0")
    if not length.isdecimal():
        raise ApiError("the Content-Length is no number")
    announced = int(length[:18])
    if announced > 4 * limits.body:
        raise large
    body, size, more = bytearray(), 0, True
    try:
        async with asyncio.timeout(limits.body_seconds):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ApiError("the client went away", status=499)
                chunk, more = message.get("body", b""), message.get("more_body", False)
                size += len(chunk)
                if size > 4 * limits.body:
                    raise large
                if max(size, announced) <= limits.body:
                    body += chunk
    except TimeoutError:
        raise ApiError("the request came too slowly", status=408) from None
    if max(size, announced) > limits.body:  # it was read on, so that the client can read this answer
        raise large
    return bytes(body)


def replayed(body: bytes, receive: Receive) -> Receive:
    """A channel that gives the body once, and then what comes after it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
