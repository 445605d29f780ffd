"""serve: a model folder behind OpenAI's HTTP interface."""

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from monoformer.card import read_card
from monoformer.cli.options import parse
from monoformer.config.serve import ServeConfig
from monoformer.data.build import build_held_out
from monoformer.data.source import usable

if TYPE_CHECKING:  # its packages are an extra's
    from monoformer.serve.page import Examples
    from monoformer.serve.replicas import Replicas
    from monoformer.serve.server import Server
    from monoformer.serve.service import Service

LOOKED_AT = 400
"""Documents that are read for examples."""

EXTRA = "the server needs the packages of the extra 'serve': pip install 'monoformer[serve]'"


@dataclass(frozen=True, kw_only=True)
class _Serve:
    """Serve a model over HTTP, as OpenAI's interface."""

    model: Annotated[str, tyro.conf.Positional]
    """Model folder or hub name."""
    name: str = ""
    """What clients call the model; empty: the name of its folder."""
    page: bool = True
    """Also serve the web page, at /."""
    slots: int = 32
    """Contexts that are served at once; a guided picture takes two."""
    budget: int = 0
    """Most tokens of prompts read between two steps of everybody's answers; 0: 512 on a CPU, else 4096."""
    device: str = "auto"
    """cuda, mps or cpu; auto takes the first that is there."""
    autoencoder: str | None = None
    """Folder or hub name of the autoencoder of its latents, in place of the one that the model folder names."""
    compile: bool = False
    """Compile the decoding of text before the first request: up to minutes, and then texts come faster."""
    ray: bool = False
    """Engines in processes of their own, by Ray Serve: from 1 to `replicas` of them (0: 2), as the load asks."""
    replicas: int = 0
    """So many engines in processes of their own, by Ray Serve; 0: one, in this process, without it."""
    most_replicas: int = 0
    """As many of them as there may be under load, at least `replicas`; 0: as many as `replicas`."""
    gpus: float = 0.0
    """GPUs of each replica."""

    server: Annotated[ServeConfig, tyro.conf.arg(name="")] = field(default_factory=ServeConfig)
    """Where it listens, and what it allows."""

    @property
    def span(self) -> tuple[int, int]:
        """The fewest and the most engines in processes of their own. Raises ValueError for a contradiction."""
        fewest, most = self.replicas, self.most_replicas or self.replicas
        if self.ray:
            fewest, most = (self.replicas or 1, most) if self.most_replicas else (1, self.replicas or 2)
        if min(self.replicas, self.gpus) < 0 or most < fewest:
            raise ValueError(
                "--replicas, --most-replicas and --gpus must be 0 or more, most-replicas at least replicas"
            )
        if not fewest and (most or self.gpus):
            raise ValueError("--most-replicas and --gpus have no effect without --ray or --replicas")
        return fewest, most


def serve(arguments: list[str]) -> None:
    """Serve a model over HTTP for OpenAI's clients: monoformer serve MODEL --port 8000"""
    options = parse(_Serve, arguments, command="serve")
    from monoformer.pipeline import Pipeline

    try:
        from monoformer.serve.server import Server, build_service, open_socket
    except ModuleNotFoundError as error:
        raise ValueError(f"{EXTRA} ({error.name} is missing)") from None
    config = options.server.with_keys()
    with open_socket(config) as listening, _replicas(options, config) as replicas:
        front = options.span[0] > 0  # then the engine of this process only says what the model is
        device, slots = ("cpu", 2) if front else (options.device, options.slots)
        pipeline = Pipeline.from_pretrained(
            options.model,
            device=device,
            slots=slots,
            budget=options.budget,
            compile=options.compile and not front,
            autoencoder=options.autoencoder,
        )
        if (decoder := pipeline.engine.network.decoder) is not None:
            print(decoder.warmed, flush=True)
        pipeline.prepare_pictures()  # clients will ask for them
        name = options.name or _name(options.model)
        service = build_service(pipeline, config, name=name, batcher=replicas)
        server = _with_page(service, listening, card=pipeline.card) if options.page else Server(service, listening)
        for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn stops at them, and raises them again when it has
            signal.signal(number, lambda *_: None)
        print(_greeting(server.address, service.name, key=bool(config.api_key), page=options.page), flush=True)
        left = server.run()
    ended = service.batcher.stats().ended
    print(f"stopped: {sum(ended.values()) - left} requests served, {left} cut off", flush=True)


def _with_page(service: "Service", listening: socket.socket, *, card: str) -> "Server":
    """The server of the routes and the page."""
    from monoformer.serve.api import build_app
    from monoformer.serve.page import mount_page
    from monoformer.serve.server import Server

    app = build_app(service)
    closing = mount_page(
        app, service.pipeline, service.batcher,
        name=service.name, examples=held_out_examples(card), limits=service.limits,
    )  # fmt: skip
    return Server(service, listening, app=app, closing=closing)


def held_out_examples(card: str) -> "Examples":
    """Held-out documents of what a model was trained on, by its card; none where that is not here."""
    from monoformer.serve.page.examples import Examples, find_examples

    try:
        config = read_card(card)
        return Examples() if config is None else find_examples(usable(build_held_out(config.data), LOOKED_AT))
    except (ValueError, OSError):  # the data is elsewhere, or of another version
        return Examples()


@contextmanager
def _replicas(options: _Serve, config: ServeConfig) -> "Iterator[Replicas | None]":
    """Engines of Ray Serve where they are asked for, else None."""
    fewest, most = options.span
    if not fewest:
        yield None
        return
    from monoformer.serve.replicas import deploy

    model, autoencoder = _from_anywhere(options.model), options.autoencoder and _from_anywhere(options.autoencoder)
    each = {
        "device": options.device, "slots": options.slots, "budget": options.budget, "compile": options.compile,
        "capacity": config.capacity, "autoencoder": autoencoder,
    }  # fmt: skip
    with deploy(model, config, replicas=fewest, most=most, options={"num_gpus": options.gpus}, **each) as replicas:
        yield replicas


def _from_anywhere(name: str) -> str:
    """A folder's path for a process that may run in another one; a hub's name as it is."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def _name(model: str) -> str:
    """The folder's name, or that of the run in which it is called `model`."""
    path = Path(model)
    parts = [part for part in path.parts if part not in ("/", ".", "..", "model")]
    return parts[-1] if parts else "monoformer"


def _greeting(address: str, name: str, *, key: bool, page: bool) -> str:
    header = " -H 'Authorization: Bearer KEY'" if key else ""
    body = '{"messages": [{"role": "user", "content": "a large red circle"}]}'
    shown = [f"  the web page: {address}/" + (" (any name, and as the password a key)" if key else "")] if page else []
    return "\n".join(
        [
            f"{name} is served at {address}/v1 (Ctrl-C stops it; {address}/docs lists what it can do)",
            f"  curl {address}/v1/chat/completions{header} -H 'Content-Type: application/json' -d '{body}'",
            *shown,
        ]
    )
