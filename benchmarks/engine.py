"""A mixed load through one engine: how much sooner all are served together than one after another.

python benchmarks/engine.py                         # 16 requests, half texts, half pictures; then 500 for memory
python benchmarks/engine.py --requests 16 --patch 4 --memory-requests 0

The requests arrive one after another, `arrival` of their mean time alone apart. One after another means in the order of
their arrival, each as soon as it is there and the engine is free, with the times that each takes alone in the same
engine. A table, then one line of JSON; memory is the process's peak, after the first fifth of many more requests and
after all of them.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import tyro
from network import Shape, build_engine, peak_memory, prompt, report, timed

from monoformer.config.generate import GenerateConfig
from monoformer.generate.engine import Engine
from monoformer.generate.session import Request


@dataclass(frozen=True, kw_only=True)
class Case(Shape):
    """A load."""

    requests: int = 16
    tokens: int = 64
    """Tokens that a text request writes."""
    steps: int = 20
    guidance: float = 2.5
    arrival: float = 0.25
    """Time between two requests, as a share of their mean time alone."""
    deterministic: bool = False
    """Passes padded to fixed shapes."""
    memory_requests: int = 500
    """Short requests served afterwards, some of them cancelled, to see whether memory grows."""


def load(case: Case, engine: Engine, *, count: int, tokens: int, steps: int) -> list[Request]:
    """Texts and pictures in turn, of different prompts."""
    endless = ((engine.tokenizer.eos, -1e9),)
    found = []
    for number in range(count):
        text = GenerateConfig(max_tokens=tokens, logit_bias=endless, seed=number)
        picture = GenerateConfig(sampler="ddpm", steps=steps, guidance=case.guidance, seed=number)
        document = prompt(13, number=number)
        if number % 2:
            found.append(Request(document=document, want="image", settings=picture))
        else:
            found.append(Request(document=document, want="text", settings=text))
    return found


def serve(engine: Engine, wanted: Sequence[Request], arrivals: Sequence[float]) -> list[float]:
    """Serve requests as they arrive; the second at which each was done."""
    engine.reader.slots.forget()
    done: dict[int, float] = {}
    numbers: list[int] = []
    started = time.perf_counter()
    while len(done) < len(wanted):
        now = time.perf_counter() - started
        while len(numbers) < len(wanted) and arrivals[len(numbers)] <= now:
            numbers.append(engine.add(wanted[len(numbers)]))
        if engine.active or engine.waiting:
            for event in engine.step():
                if event.kind == "end":
                    done[event.session] = time.perf_counter() - started
        else:
            time.sleep(max(0.0, arrivals[len(numbers)] - now))
    return [done[number] for number in numbers]


def one_after_another(alone: Sequence[float], arrivals: Sequence[float]) -> list[float]:
    """The second at which each would be done if they were served in turn."""
    done, free = [], 0.0
    for seconds, arrival in zip(alone, arrivals, strict=True):
        free = max(free, arrival) + seconds
        done.append(free)
    return done


def grow(engine: Engine, case: Case) -> tuple[int, int]:
    """Peak memory after a fifth of many short requests and after all of them; every tenth is cancelled."""
    peaks = []
    for first in range(0, case.memory_requests, 20):
        for request in load(case, engine, count=20, tokens=4, steps=1):
            engine.add(request)
        engine.step()
        for session in list(engine.active)[::10]:
            engine.cancel(session.number)
        while engine.active or engine.waiting:
            engine.step()
        peaks.append(peak_memory(engine.network.device))
        assert len(engine.free) == engine.network.cache.keys.shape[1], f"slots were lost before request {first + 20}"
    return peaks[len(peaks) // 5], peaks[-1]


def main() -> None:
    """Time the load."""
    case = tyro.cli(Case)
    engine = build_engine(case, slots=2 * case.requests, deterministic=case.deterministic)
    device, cache = engine.network.device, engine.network.cache
    wanted = load(case, engine, count=case.requests, tokens=case.tokens, steps=case.steps)
    engine.run(load(case, engine, count=4, tokens=2, steps=1))
    alone = [timed(lambda one=one: serve(engine, [one], [0.0]), device) for one in wanted]  # type: ignore[misc]
    arrivals = [case.arrival * mean(alone) * number for number in range(case.requests)]
    serial, mixed = one_after_another(alone, arrivals), serve(engine, wanted, arrivals)
    waits = {
        name: [end - arrival for end, arrival in zip(ends, arrivals, strict=True)]
        for name, ends in (("serial", serial), ("mixed", mixed))
    }
    result: dict[str, Any] = {
        "mixed_over_serial": max(mixed) / max(serial),
        "mean_latency": {name: mean(seconds) for name, seconds in waits.items()},
        "seconds": {"serial": max(serial), "mixed": max(mixed)},
        "latencies": {name: [round(one, 3) for one in seconds] for name, seconds in waits.items()},
        "alone": [round(one, 3) for one in alone],
        "precision": str(case.dtype).removeprefix("torch."),
        "cache_bytes_per_token": 2 * cache.keys.nbytes // (cache.keys.shape[1] * cache.keys.shape[3]),
        "predicted_bytes_per_token": 2 * case.layers * case.kv_heads * (case.width // case.heads) * cache.keys.itemsize,
        "cache_bytes_per_session": (cache.keys.nbytes + cache.values.nbytes) // cache.keys.shape[1],
    }
    if case.memory_requests:
        early, late = grow(engine, case)
        result |= {"peak_memory_bytes": late, "memory_growth_bytes": late - early}
    report("a mixed load", result, case)


if __name__ == "__main__":
    main()
