"""Two replicas of Ray Serve behind one server: the same answers, and none lost without a word when one is killed."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from monoformer.config.serve import ServeConfig
from monoformer.document import Document, Text
from monoformer.generate.session import Request
from monoformer.pipeline import Pipeline
from monoformer.serve.metrics import Meters
from monoformer.serve.replicas import LOST, deploy
from monoformer.serve.server import Server, open_socket
from monoformer.serve.service import Service
from tests import tiny
from tests.serve.test_faults import WORDS
from tests.serve.test_limits import DRAW, TEXT, fault_of

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes as Linux shows them")
def test_the_load_starts_another_replica(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    made = tiny.pretrained()
    Pipeline(made, slots=2).save_pretrained(tmp_path / "model")
    long = Request(document=Document((Text("a"),)), want="image", settings=replace(made.generate, steps=250))
    actor = {"num_cpus": 0.5}
    with deploy(
        str(tmp_path / "model"), ServeConfig(), replicas=1, most=2, options=actor, device="cpu", slots=2, capacity=64
    ) as replicas:

        async def ask() -> None:
            async with await replicas.submit(long) as events:
                async for _ in events:
                    pass

        async def load() -> None:
            end = time.monotonic() + 180
            while len(replica_processes()) < 2 and time.monotonic() < end:
                await asyncio.gather(*(ask() for _ in range(6)))

        assert len(replica_processes()) == 1
        asyncio.run(load())
        assert len(replica_processes()) == 2


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Service]]:
    """The address of a server of two replicas, and its service."""
    pytest.importorskip("ray")
    folder = tmp_path_factory.mktemp("replicas") / "model"
    pipeline = Pipeline(tiny.pretrained(), slots=2)
    pipeline.save_pretrained(folder)
    config = ServeConfig(port=0, drain_seconds=5.0)
    actor = {"num_cpus": 0.5}
    with (
        deploy(str(folder), config, replicas=2, most=2, options=actor, device="cpu", slots=8, capacity=64) as replicas,
        open_socket(config) as listening,
    ):
        service = Service(pipeline=pipeline, batcher=replicas, config=config, name="tiny", meters=Meters(replicas))
        server = Server(service, listening)
        thread = Thread(target=server.run)
        thread.start()
        yield server.address, service
        server.stop()
        thread.join(timeout=30)


def replica_processes() -> list[int]:
    """The processes of the replicas, as Linux shows them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"ray::ServeReplica:monoformer:engine" in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_replicas_answer_as_one_engine(served: tuple[str, Service]) -> None:
    url, service = served
    expected = service.pipeline.generate(
        Document((Text("the red"),)), want="text", temperature=1.0, seed=7, max_tokens=60,
        logit_bias={tiny.tokenizer().eos: -100.0},
    )[0].segments[0]  # fmt: skip
    with httpx.Client(base_url=url, timeout=60) as http:
        made = http.post(TEXT, json=WORDS | {"seed": 7, "logprobs": 1}).json()["choices"][0]
        assert made["text"] == expected.text
        assert len(made["logprobs"]["tokens"]) == 60
        events = http.post(DRAW, json={"prompt": "a", "stream": True, "partial_images": 1}).text
        assert "partial_image" in events
        assert "image_generation.completed" in events
        assert "not trained" in fault_of(http.post(DRAW, json={"prompt": "a", "size": "40x40"}))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes as Linux shows them")
def test_no_request_is_lost_when_a_replica_is_killed(served: tuple[str, Service]) -> None:
    url, service = served
    begun: set[int] = set()

    def ask(number: int) -> str:
        body: dict[str, Any] = WORDS | {"seed": number, "stream": True, "max_tokens": 120}
        with httpx.stream("POST", url + TEXT, json=body, timeout=120) as answer:
            assert answer.status_code == 200, answer.read()
            lines: list[str] = []
            for line in answer.iter_lines():
                if line:
                    lines.append(line)
                    begun.add(number)
            return lines[-1]

    processes = replica_processes()
    assert len(processes) == 2
    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(ask, number) for number in range(16)]
        while len(begun) < 8:
            time.sleep(0.01)
        os.kill(processes[0], signal.SIGKILL)
        ends = [answer.result() for answer in answers]
    for end in ends:
        assert end == "data: [DONE]" or LOST in json.loads(end.removeprefix("data: "))["error"]["message"]
    assert ends.count("data: [DONE]") >= 4
    with httpx.Client(base_url=url, timeout=60) as http:
        assert http.post(TEXT, json=WORDS).status_code == 200
        for _ in range(300):
            if len(replica_processes()) == 2:
                break
            time.sleep(0.5)
        assert len(replica_processes()) == 2, "another one was started"
        assert http.post(TEXT, json=WORDS).status_code == 200
    assert service.batcher.stats().failures >= 1
