"""The fault table: whatever happens to one request, its client is told, and the others are served."""

import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monoformer.autoencoder import Pixels
from monoformer.cli.main import main
from monoformer.config.serve import ServeConfig
from monoformer.pipeline import Pipeline
from monoformer.serve.server import open_socket
from tests import tiny
from tests.laws.test_engine import Speechless
from tests.serve.conftest import Running, running
from tests.serve.test_batcher import Brittle
from tests.serve.test_limits import CHAT, DRAW, EDIT, TEXT, data_of, fault_of, showing
from tests.serve.test_openai import png, square

ROOT = Path(__file__).parents[2]
USER = {"role": "user", "content": "a red circle"}
LONG: dict[str, Any] = {"messages": [USER], "modalities": ["image"], "steps": 250}
WORDS: dict[str, Any] = {
    "prompt": "the red", "max_tokens": 60, "temperature": 1.0, "logit_bias": {str(tiny.tokenizer().eos): -100},
}  # fmt: skip


def until(holds: Callable[[], Any], *, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def cancelled(server: Running) -> int:
    return server.service.batcher.stats().ended.get("cancelled", 0)


def test_a_client_that_goes_away_frees_its_slots(server: Running) -> None:
    before, batcher = cancelled(server), server.service.batcher
    with httpx.Client(base_url=server.url) as http:
        with http.stream("POST", CHAT, json=LONG | {"stream": True, "n": 2}) as answer:
            next(answer.iter_lines())
        until(lambda: cancelled(server) == before + 2)
        with pytest.raises(httpx.ReadTimeout):
            http.post(DRAW, json={"prompt": "a", "steps": 250, "n": 8}, timeout=0.1)
        until(lambda: cancelled(server) == before + 10)
    until(lambda: batcher.stats().free == batcher.stats().slots)


def test_a_full_queue_says_when_to_come_again(server: Running) -> None:
    with running(capacity=2) as small, httpx.Client(base_url=small.url) as http, small.client() as client:
        with http.stream("POST", CHAT, json=LONG | {"stream": True, "n": 2}) as answer:
            lines = answer.iter_lines()
            next(lines)
            with pytest.raises(openai.RateLimitError, match="try again in") as full:
                client.images.generate(prompt="a")
            assert 1 <= int(full.value.response.headers["retry-after"]) <= 60
            assert http.get("/ready").status_code == 503
            assert http.get("/health").status_code == 200
        until(lambda: cancelled(small) == 2)
        assert client.images.generate(prompt="a").data


def test_an_engine_that_fails() -> None:
    pipeline = Pipeline(tiny.pretrained())
    engine = pipeline.engine = Brittle(pipeline.pretrained, Pixels(), slots=8)
    with running(pipeline=pipeline) as server, server.client() as client, httpx.Client(base_url=server.url) as http:
        engine.fails = 1
        assert "the request failed" in fault_of(http.post(TEXT, json=WORDS), 500)
        engine.fails = 1
        with pytest.raises(openai.APIError, match="the request failed"):
            list(client.completions.create(model="tiny", stream=True, **WORDS))
        assert client.completions.create(model="tiny", **WORDS).choices[0].text
        assert http.get("/health").status_code == 200
        engine.fails = 3
        for _ in range(3):
            fault_of(http.post(DRAW, json={"prompt": "a"}), 500)
        assert http.get("/health").status_code == http.get("/ready").status_code == 503
        fault_of(http.post(DRAW, json={"prompt": "a"}), 503)


def test_a_request_that_cannot_be_computed_fails_alone() -> None:
    made, (bad,) = tiny.pretrained(), tiny.tokenizer().encode("q")
    made.model.tokens.weight.data[bad] = float("nan")
    words = WORDS | {"logit_bias": WORDS["logit_bias"] | {str(bad): -100}}
    with running(pipeline=Pipeline(made, slots=8)) as server, httpx.Client(base_url=server.url) as http:
        with ThreadPoolExecutor(4) as pool:
            prompts = ["the red", "q", "a blue", "q"]
            answers = list(pool.map(lambda prompt: http.post(TEXT, json=words | {"prompt": prompt}), prompts))
        assert [answer.status_code for answer in answers] == [200, 500, 200, 500]
        assert "not finite" in fault_of(answers[1], 500)
        assert http.get("/ready").status_code == 200


def test_a_failure_without_a_message_is_told_by_its_name() -> None:
    with (
        running(pipeline=Pipeline(tiny.pretrained(), autoencoder=Speechless("encode"), slots=4)) as server,
        httpx.Client(base_url=server.url) as http,
    ):
        answer = http.post(CHAT, json=showing(data_of(png(square()))))
        assert "the request failed: MemoryError" in fault_of(answer, 500)
        assert http.post(TEXT, json=WORDS).status_code == 200


def test_stopping_finishes_what_runs() -> None:
    with running() as server, httpx.Client(base_url=server.url) as http:
        with http.stream("POST", TEXT, json=WORDS | {"stream": True, "n": 3}) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.server.stop()
            assert [line for line in lines if line][-1] == "data: [DONE]"
        server.thread.join(timeout=30)
        assert server.service.batcher.stats().ended == {"length": 3}
        with pytest.raises(httpx.ConnectError):
            http.get("/health")


def test_two_servers_on_one_port(server: Running) -> None:
    port = server.server.listening.getsockname()[1]
    with pytest.raises(ValueError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use"):
        open_socket(ServeConfig(port=port))


def test_stopping_tells_whom_it_cuts_off() -> None:
    with running(drain_seconds=0.0) as server, server.client() as client:
        stream = client.chat.completions.create(
            model="tiny", messages=[USER], stream=True, extra_body={"steps": 250, "modalities": ["image"]}
        )
        next(iter(stream))
        server.server.stop()
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)


def test_health_answers_while_the_engine_works(server: Running) -> None:
    body = LONG | {"stream": True, "n": 4}
    with httpx.Client(base_url=server.url) as http, http.stream("POST", CHAT, json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        seconds = []
        for _ in range(40):
            start = time.perf_counter()
            assert http.get("/health").status_code == 200
            seconds.append(time.perf_counter() - start)
        assert server.service.batcher.stats().active, "the engine was working"
    assert statistics.quantiles(seconds, n=20)[-1] < 0.1, "95 of 100"


def test_a_long_prompt_holds_nobody_up() -> None:
    """A prompt of 99,000 characters that might fit: its tokens must be counted before it is refused."""
    roomy = Pipeline(tiny.pretrained(context=40_000), slots=2)
    with running(pipeline=roomy) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        with http.stream("POST", TEXT, json=WORDS | {"stream": True, "max_tokens": 8000}) as answer:
            lines = (line for line in answer.iter_lines() if line)
            next(lines)
            with ThreadPoolExecutor(1) as pool:
                refused = pool.submit(http.post, TEXT, json={"prompt": "wordwordqz" * 9_900, "n": 8})
                seconds = []
                while not refused.done():
                    start = time.perf_counter()
                    next(lines)
                    assert http.get("/health").status_code == 200
                    seconds.append(time.perf_counter() - start)
        assert "99000 tokens, too many for the model's context" in fault_of(refused.result())
    assert len(seconds) > 3, "others' words and /health come while its tokens are made"
    assert max(seconds) < 0.5


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """The command in a process of its own, its address, and the model that it serves."""
    pytest.importorskip("gradio", reason="the page needs the extra serve")
    folder = tmp_path_factory.mktemp("served") / "small" / "model"
    Pipeline(tiny.pretrained()).save_pretrained(folder)
    command = [sys.executable, "-m", "monoformer", "serve", str(folder), "--port=0", "--slots=8", "--drain-seconds=60"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        found = re.match(r"small is served at (http://127\.0\.0\.1:\d+)/v1", first)
        assert found, first
        yield process, found[1], folder
        process.kill()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_the_command_and_sigterm_under_load(
    started: tuple[subprocess.Popen[str], str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    process, url, folder = started
    with pytest.raises(SystemExit) as stop:
        main(["serve", str(folder), f"--port={url.rpartition(':')[2]}"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot listen on 127.0.0.1 port" in line
    with pytest.raises(SystemExit):
        main(["serve", str(folder), "--host=0.0.0.0"])
    assert "--api-key" in capsys.readouterr().err

    assert process.stdout is not None
    curl = process.stdout.readline()
    assert curl.strip().startswith(f"curl {url}/v1/chat/completions")
    begun = [0]

    def load(number: int) -> str:
        with httpx.stream("POST", url + TEXT, json=WORDS | {"stream": True, "seed": number}, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            begun[0] += 1
            return [line for line in lines if line][-1]

    with ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(load, number) for number in range(12)]
        until(lambda: begun[0] >= 4)
        process.send_signal(signal.SIGTERM)
        done = [answer.result() if not answer.exception() else "refused" for answer in answers]
    assert done.count("data: [DONE]") >= begun[0] >= 4, "what was accepted was finished"
    assert process.wait(timeout=60) == 0
    assert re.search(r"stopped: \d+ requests served, 0 cut off", process.stdout.read())


def flood(url: str, *, examples: int) -> None:
    """Malformed and well-formed requests to every route by its description; none may fail the server."""
    import schemathesis
    from schemathesis import GenerationMode

    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    for path in (CHAT, TEXT, DRAW, EDIT):
        operation = schema[path]["POST"]
        malformed = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
        formed = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)

        @settings(
            max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=[*HealthCheck]
        )
        @given(case=st.one_of(malformed, malformed, malformed, formed))
        def answers(case: Any) -> None:
            answer = case.call(base_url=url, timeout=30)
            assert answer.status_code < 500, (case.body, answer.text)
            if answer.status_code >= 400:
                assert answer.json()["error"]["message"]

        answers()
    assert httpx.get(f"{url}/health").status_code == 200


def test_malformed_requests(server: Running) -> None:
    flood(server.url, examples=13)


@pytest.mark.slow
def test_a_thousand_malformed_requests(server: Running) -> None:
    flood(server.url, examples=270)
