"""A model behind a socket: starts, serves, and stops without dropping what runs.

    with open_socket(config) as listening:
        Server(build_service(pipeline, config, name="demo"), listening).run()

Invariant: a stopped server has answered every request that it accepted, if only to say that it was cut off.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from monoformer.config.serve import ServeConfig
from monoformer.pipeline import Pipeline
from monoformer.serve.api import build_app
from monoformer.serve.batcher import Batcher
from monoformer.serve.metrics import Meters
from monoformer.serve.replicas import Replicas
from monoformer.serve.service import Service

GRACE = 5.0
"""Seconds in which the last answers are sent when the draining is over."""


def open_socket(config: ServeConfig) -> socket.socket:
    """A socket that listens where the configuration says. Raises ValueError where it cannot."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        listening = socket.create_server((config.host, config.port), family=family, backlog=1024)
        # connections inherit it; asyncio itself does not see that they are TCP, and every second packet waits 40 ms
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(
            f"cannot listen on {config.host} port {config.port}: {reason}; another --port, or 0 for any free one"
        ) from None


def build_service(
    pipeline: Pipeline, config: ServeConfig, *, name: str, batcher: Batcher | Replicas | None = None
) -> Service:
    """What clients call `name`: by the pipeline's engine with a thread of its own, or by a batcher that there is."""
    batcher = Batcher(pipeline.engine, capacity=config.capacity) if batcher is None else batcher
    return Service(pipeline=pipeline, batcher=batcher, config=config.with_keys(), name=name, meters=Meters(batcher))


class Server:
    """The application of a service on a socket."""

    def __init__(
        self,
        service: Service,
        listening: socket.socket,
        *,
        app: Any = None,
        closing: Callable[[], None] = lambda: None,
    ) -> None:
        """`app` None: the routes of `build_app`; else those with something more around them.

        `closing` is called when the draining is over, to end answers that go on for ever, as a page's do.
        """
        from uvicorn import Config
        from uvicorn import Server as Uvicorn

        self.service, self.listening, self.closing = service, listening, closing
        drain = service.config.drain_seconds
        self._uvicorn = Uvicorn(
            Config(
                build_app(service) if app is None else app,
                log_level="warning",
                lifespan="off" if app is None else "on",
                ws="none",
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=round(drain + GRACE),
            )
        )

    @property
    def address(self) -> str:
        """Where it listens, for this machine's clients."""
        host, port = self.listening.getsockname()[:2]
        name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"

    def run(self) -> int:
        """Serve until SIGTERM, Ctrl-C or `stop`; the number of requests that had to be cut off."""
        return asyncio.run(self._run())

    def stop(self) -> None:
        """Finish what runs, then return from `run`; called from any thread."""
        self._uvicorn.should_exit = True

    async def _run(self) -> int:
        serving = asyncio.create_task(self._uvicorn.serve(sockets=[self.listening]))
        while not (self._uvicorn.should_exit or serving.done()):  # noqa: ASYNC110 (a signal sets it)
            await asyncio.sleep(0.05)
        left = await self.service.batcher.drain(seconds=self.service.config.drain_seconds)
        self.closing()
        await serving
        return left
