"""Mixed requests from many clients over loopback, beside the same requests in the bare engine.

python benchmarks/serve.py
python benchmarks/serve.py --requests 60 --clients 8 --width 512 --layers 8

A quarter each: texts, streamed; talks, answered at once; pictures, streamed with previews; questions about a picture,
streamed. A table, then one line of JSON: `failures`, `http_overhead` (seconds over HTTP by seconds in the bare engine,
less 1), latencies in seconds, bytes of memory before and after.
"""

import asyncio
import base64
import io
import json
import re
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import tyro
from network import WORDS, Latents, Shape, build_pretrained, report
from PIL import Image as PILImage

from monoformer.config.serve import ServeConfig
from monoformer.document import Document, Text
from monoformer.generate.engine import Engine
from monoformer.generate.session import Request
from monoformer.pipeline import Pipeline
from monoformer.serve.server import Server, build_service, open_socket

FIRST = re.compile(rb'"(text|content|b64_json)":"[^"]')
"""A word, or a picture."""


@dataclass(frozen=True, kw_only=True)
class Case(Shape):
    """A load, and the network that it is served by."""

    width: int = 256
    layers: int = 6
    heads: int = 4
    mlp_width: int = 704
    vocabulary: int = 512
    context: int = 320
    latent: int = 16
    requests: int = 200
    clients: int = 32
    tokens: int = 32
    steps: int = 12
    slots: int = 32


@dataclass
class Seen:
    """What one client saw of its request."""

    kind: str
    seconds: float = 0.0
    first: float = 0.0
    """Until the first word, or preview."""
    failed: bool = False
    size: int = 0
    """Bytes of the answer."""
    start: float = field(default_factory=time.perf_counter)


def picture(case: Case) -> PILImage.Image:
    """What the questions are about."""
    random = np.random.default_rng(0)
    return PILImage.fromarray(random.integers(0, 256, (case.latent, case.latent, 3), dtype=np.uint8))


def question(case: Case, number: int, *, bias: dict[str, float]) -> tuple[str, str, dict[str, Any]]:
    """Kind, path and body of a request."""
    text = f"{WORDS} {number % 10}"
    words = {"max_tokens": case.tokens, "temperature": 1.0, "logit_bias": bias, "seed": number}
    match number % 4:
        case 0:
            return "text", "/v1/completions", words | {"prompt": text, "stream": True}
        case 1:
            talk = [{"role": "user", "content": text}]
            return "talk", "/v1/chat/completions", words | {"messages": talk, "modalities": ["text"]}
        case 2:
            body = {"prompt": text, "steps": case.steps, "guidance": 2.5, "seed": number}
            return "picture", "/v1/images/generations", body | {"stream": True, "partial_images": 2}
        case _:
            out = io.BytesIO()
            picture(case).save(out, "PNG")
            address = f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
            parts = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": text}]
            asked = [{"role": "user", "content": parts}]
            return (
                "question",
                "/v1/chat/completions",
                words | {"messages": asked, "modalities": ["text"], "stream": True},
            )


def request(case: Case, number: int, pipeline: Pipeline, *, bias: dict[str, float]) -> Request:
    """The same as the engine gets it."""
    text, shown = Text(f"{WORDS} {number % 10}", "user"), pipeline.context_image(picture(case))
    settings = replace(
        pipeline.pretrained.generate, max_tokens=case.tokens, temperature=1.0, seed=number,
        logit_bias=tuple((int(token), value) for token, value in bias.items()),
    )  # fmt: skip
    drawing = replace(settings, steps=case.steps, guidance=2.5, logit_bias=())
    match number % 4:
        case 0:
            return Request(document=Document((Text(text.text),)), want="text", settings=settings)
        case 1:
            return Request(document=Document((text,)), want="text", settings=settings)
        case 2:
            return Request(document=Document((text,)), want="image", settings=drawing, previews=-(-case.steps // 3))
        case _:
            return Request(document=Document((shown, text)), want="text", settings=settings)


def run_bare(engine: Engine, requests: Sequence[Request], *, clients: int) -> float:
    """Seconds of the engine alone, as many requests at once as there are clients, previews looked at."""
    start, waiting, running = time.perf_counter(), deque(requests), 0
    while waiting or running:
        while waiting and running < clients:
            engine.add(waiting.popleft())
            running += 1
        for event in engine.step():
            running -= event.kind == "end"
            if event.preview is not None:
                event.preview.image()
    return time.perf_counter() - start


async def ask(host: str, port: int, kind: str, path: str, body: dict[str, Any]) -> Seen:
    """One request over a connection of its own, by hand: a client library would cost more than the server."""
    data, seen = json.dumps(body).encode(), Seen(kind)
    reader, writer = await asyncio.open_connection(host, port, limit=2**24)
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    status, last = await reader.readline(), b""
    async for line in reader:
        seen.size += len(line)
        if not seen.first and FIRST.search(line):
            seen.first = time.perf_counter() - seen.start
        last = line if line.strip() not in (b"", b"0") else last
    writer.close()
    seen.seconds = time.perf_counter() - seen.start
    complete = {"text": b"[DONE]", "question": b"[DONE]", "picture": b".completed"}
    seen.failed = b" 200 " not in status or complete.get(kind, b'"usage"') not in last
    return seen


async def run_clients(
    case: Case, address: tuple[str, int], numbers: Sequence[int], bias: dict[str, float]
) -> list[Seen]:
    """Serve all numbers, so many at once as there are clients."""
    left, found = deque(numbers), list[Seen]()

    async def client() -> None:
        while left:
            kind, path, body = question(case, left.popleft(), bias=bias)
            found.append(await ask(*address, kind, path, body))

    await asyncio.gather(*(client() for _ in range(case.clients)))
    return found


def resident() -> float:
    """Bytes of memory in use, 0 where the system does not say."""
    status = Path("/proc/self/statm")
    return float(status.read_text().split()[1]) * 4096 if status.exists() else 0.0


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which so much of the values lies; 0 of none."""
    return float(np.quantile(values, share)) if values else 0.0


def main() -> None:
    """Warm up, run both, compare."""
    case = tyro.cli(Case)
    pipeline = Pipeline(build_pretrained(case), autoencoder=Latents(case.latent), slots=case.slots)
    bias = {str(pipeline.engine.tokenizer.eos): -100.0}
    requests = [request(case, number, pipeline, bias=bias) for number in range(case.requests)]
    run_bare(pipeline.engine, requests[: case.clients], clients=case.clients)
    bare = [run_bare(pipeline.engine, requests, clients=case.clients)]
    config = ServeConfig(port=0, capacity=2 * case.clients)
    with open_socket(config) as listening:
        service = build_service(pipeline, config, name="benchmark")
        server = Server(service, listening)
        thread = Thread(target=server.run)
        thread.start()
        address = listening.getsockname()
        asyncio.run(run_clients(case, address, range(case.clients), bias))
        before, start = resident(), time.perf_counter()
        seen = asyncio.run(run_clients(case, address, range(case.requests), bias))
        seconds, after = time.perf_counter() - start, resident()
        server.stop()
        thread.join()
    bare.append(run_bare(pipeline.engine, requests, clients=case.clients))
    alone = sum(bare) / len(bare)
    result = {
        "failures": float(sum(one.failed for one in seen)),
        "http_overhead": seconds / alone - 1,
        "seconds": seconds,
        "bare_seconds": alone,
        "requests_per_second": len(seen) / seconds,
        "first_token_p50": quantile([one.first for one in seen if one.kind in ("text", "question")], 0.5),
        "first_token_p95": quantile([one.first for one in seen if one.kind in ("text", "question")], 0.95),
        "first_preview_p50": quantile([one.first for one in seen if one.kind == "picture"], 0.5),
        "first_preview_p95": quantile([one.first for one in seen if one.kind == "picture"], 0.95),
        "memory_before": before,
        "memory_after": after,
        "bytes_answered": float(sum(one.size for one in seen)),
    }
    for kind in ("text", "talk", "picture", "question"):
        own = [one.seconds for one in seen if one.kind == kind]
        result |= {f"{kind}_p50": quantile(own, 0.5), f"{kind}_p95": quantile(own, 0.95)}
    report("serving", result, case)
    sys.exit(int(result["failures"] > 0))


if __name__ == "__main__":
    main()
