"""A real server on a free port of loopback, with a tiny random model, and OpenAI's own client in front of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import Any

import openai
import pytest
import torch

from monoformer.config.serve import ServeConfig
from monoformer.pipeline import Pipeline
from monoformer.serve.server import Server, build_service, open_socket
from monoformer.serve.service import Service
from tests import tiny


@pytest.fixture(autouse=True, scope="package")
def _one_thread(_deterministic: None) -> Iterator[None]:
    """As for the laws: the matrices are tiny."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Running:
    """A server, and how to stop it."""

    url: str
    service: Service
    server: Server
    thread: Thread

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(**{"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0} | options)

    def stop(self) -> None:
        self.server.stop()
        self.thread.join(timeout=30)
        assert not self.thread.is_alive()


@contextmanager
def running(*, slots: int = 8, pipeline: Pipeline | None = None, **config: Any) -> Iterator[Running]:
    """A server of a tiny model while the block runs."""
    settings = ServeConfig(**{"port": 0, "drain_seconds": 5.0} | config)
    with open_socket(settings) as listening:
        service = build_service(pipeline or Pipeline(tiny.pretrained(), slots=slots), settings, name="tiny")
        server = Server(service, listening)
        thread = Thread(target=server.run)
        thread.start()
        found = Running(server.address, service, server, thread)
        try:
            yield found
        finally:
            found.stop()


@pytest.fixture(scope="package")
def server(_one_thread: None) -> Iterator[Running]:
    """The one that most tests share."""
    with running() as found:
        yield found


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    """OpenAI's client of the shared server."""
    with server.client() as found:
        yield found
