"""Figures for Prometheus: what the batcher does, and how long requests take.

Knows nothing of routes but their names. Invariant: figures that the batcher keeps are read when they are asked for.
"""

from collections.abc import Iterator
from typing import Any

from monoformer.serve.batcher import Batcher
from monoformer.serve.replicas import Replicas

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Upper ends of the histograms' buckets."""

GAUGES = {
    "waiting": "Requests without a slot of the cache",
    "active": "Requests that are read, written or drawn",
    "slots": "Slots of the cache",
    "free": "Slots that nobody uses",
    "cached": "Tokens that the cache holds",
    "room": "Tokens that the cache could hold",
}
COUNTERS = {
    "read": "Tokens of prompts that passed through the network",
    "written": "Tokens of text",
    "pictures": "Pictures drawn",
    "steps": "Steps of the engine",
    "failures": "Steps of the engine that raised",
}


class Meters:
    """The figures of one server, in a registry of its own."""

    def __init__(self, batcher: Batcher | Replicas) -> None:
        """Of this batcher."""
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self.registry = CollectorRegistry()
        self.registry.register(Collector(batcher))
        self._answers = Counter("monoformer_answers", "HTTP answers", ("route", "status"), registry=self.registry)
        self._seconds = Histogram(
            "monoformer_answer_seconds", "From a request to the end of its answer", ("route",),
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self._first = Histogram(
            "monoformer_first_seconds", "From a request to its first token, or preview of a picture", ("what",),
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip

    def answer(self, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self._answers.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def first(self, what: str, seconds: float) -> None:
        """Note when a request's first token or preview came."""
        self._first.labels(what).observe(seconds)

    def text(self) -> bytes:
        """All figures in Prometheus' form."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


class Collector:
    """What the batcher says of itself."""

    def __init__(self, batcher: Batcher | Replicas) -> None:
        self.batcher = batcher

    def collect(self) -> Iterator[Any]:
        """Families of figures, as prometheus_client asks for them."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        stats = self.batcher.stats()
        for name, text in GAUGES.items():
            yield GaugeMetricFamily(f"monoformer_{name}", text, getattr(stats, name))
        for name, text in COUNTERS.items():
            yield CounterMetricFamily(f"monoformer_{name}", text, getattr(stats, name))
        ended = CounterMetricFamily("monoformer_ended", "Requests by the reason why they ended", labels=["reason"])
        for reason, count in sorted(stats.ended.items()):
            ended.add_metric([reason], count)
        yield ended
