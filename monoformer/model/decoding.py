"""One more text token of every row as one compiled graph: fused norms, rotations and sums, and hardly any Python.

Knows nothing of requests. Invariants: it computes what the network computes (up to the last bits), writes into the
cache only when a pass is done, and compiles at most two graphs, whatever lengths and numbers of rows come and go: one
for a single row, one for more.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from shutil import which
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from monoformer.model.attention import KVCache
from monoformer.model.monoformer import MonoFormer

REMEDY = "install one (Debian and Ubuntu: apt install g++; Fedora: dnf install gcc-c++), or leave compile out"


@dataclass(frozen=True)
class WarmUp:
    """What compiling took."""

    graphs: int
    seconds: float

    def __str__(self) -> str:
        """As a line of a log."""
        return f"decoding is compiled: {self.graphs} graphs in {self.seconds:.1f} s"


@dataclass(frozen=True)
class TokenView:
    """What one token of each of B rows reads of a cache; what it would store is kept in `made`, layer after layer."""

    layers: Sequence[tuple[Tensor, Tensor]]
    """Keys and values (slots, G, capacity, K) of each layer."""
    slots: Tensor
    """int64 (B,): slot of each row."""
    lengths: Tensor
    """int64 (B,): tokens already in it."""
    index: Tensor
    """int64 (S,): 0, 1, ... to the longest of `lengths`, or further."""
    made: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Keys and values (B, G, K), in the cache's dtype."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Queries (B, H, 1, K) over what the slots hold and their own k and v (B, G, 1, K) -> (B, H, 1, K).

        In sums and products of single numbers, not SDPA: compiled they read the slots where they lie, without a copy.
        """
        assert mask is None, "one token sees all before it"
        cache, own, count = self.layers[layer], v.dtype, len(self.index)
        held = cache[0].dtype
        q, k, v = q.to(held), k.to(held), v.to(held)
        self.made.append((k[:, :, 0], v[:, :, 0]))
        keys, values = (x[self.slots][:, :, None, :count] for x in cache)
        rows = (q * q.shape[-1] ** -0.5).reshape(*k.shape[:2], -1, q.shape[-1])  # (B, G, H / G, K)
        past = (rows[:, :, :, None] * keys).sum(-1)  # (B, G, H / G, S)
        past = past.masked_fill((self.index >= self.lengths[:, None])[:, None, None], -torch.inf)
        present = (rows * k).sum(-1, keepdim=True)
        most = torch.maximum(past.amax(-1, keepdim=True), present)
        past, present = (past - most).exp(), (present - most).exp()
        found = (past[..., None] * values).sum(-2) + present * v
        result: Tensor = found / (past.sum(-1, keepdim=True) + present)
        return result.reshape(q.shape).to(own)


class Decoder:
    """A network's pass over one more token of every row, compiled."""

    def __init__(self, model: MonoFormer, cache: KVCache) -> None:
        """Nothing is compiled yet. Raises ValueError where it cannot be."""
        check_compiles(cache.keys.device)
        self.model, self.cache = model, cache
        self.warmed = WarmUp(0, 0.0)
        """What was compiled ahead of the first request."""
        self._layers = list(zip(cache.keys.unbind(), cache.values.unbind(), strict=True))
        """As tensors of their own: were their places numbers in the code, no two layers could share a kernel."""
        self._index = torch.arange(cache.keys.shape[3], device=cache.keys.device)
        own = FunctionType(_states.__code__.replace(), _states.__globals__)  # a code of its own has graphs of its own
        self._states: Any = torch.compile(own, fullgraph=True, options={"guard_filter_fn": _keep})

    def warm_up(self, rows: Sequence[int]) -> WarmUp:
        """Compile for so many rows, each number a pass that stores nothing.

        The compiler decides by the sizes that it sees first which loops are worth several threads.
        """
        started, before = time.perf_counter(), graphs()
        for count in rows:
            self._run(torch.zeros((4, count), dtype=torch.long), span=len(self._index) // 2)
        self.warmed = WarmUp(graphs() - before, time.perf_counter() - started)
        return self.warmed

    def read(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        slots: Sequence[int],
        lengths: Sequence[int],
        *,
        rows: int,
        span: int,
    ) -> Tensor:
        """Hidden states (B, D) after one more token of each row, which is stored; empty rows fill a pass up to `rows`.

        `span`: the longest of `lengths`, or more.
        """
        given = torch.tensor([tokens, positions, slots, lengths])
        count = len(tokens)
        padded = torch.nn.functional.pad(given, (0, rows - count))
        hidden, keys, values = self._run(padded, span=span)
        _, _, slot, place = given.to(self._index.device)
        self.cache.keys[:, slot, :, place] = keys[:count]
        self.cache.values[:, slot, :, place] = values[:count]
        return hidden

    @torch.no_grad()
    def _run(self, rows: Tensor, *, span: int) -> tuple[Tensor, Tensor, Tensor]:
        rows = rows.to(self._index.device)
        index = self._index[: max(2, span)]  # a length of 1 would be a graph of its own
        if rows.shape[1] > 1:
            torch._dynamo.mark_dynamic(rows, 1)
        torch._dynamo.mark_dynamic(index, 0)
        found: tuple[Tensor, Tensor, Tensor] = self._states(self.model, self._layers, rows, index)
        return found


def check_compiles(device: torch.device) -> None:
    """Raises ValueError where torch.compile has nothing to compile with."""
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"compile is for CPUs and CUDA, but this is {device}; leave it out")
    compiler = os.environ.get("CXX", "g++")  # as torch.compile looks for it
    if device.type == "cpu" and which(compiler) is None:
        raise ValueError(f"compile needs a C++ compiler, but there is no {compiler}; {REMEDY}")


def graphs() -> int:
    """Graphs that this process has compiled so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _states(
    model: MonoFormer, layers: Sequence[tuple[Tensor, Tensor]], rows: Tensor, index: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, positions, slots and lengths (4, B) -> states (B, D), keys and values (B, layers, G, K)."""
    tokens, positions, slots, lengths = rows.unbind(0)
    view = TokenView(layers, slots, lengths, index)
    hidden = model(tokens[:, None], positions[:, None], None, view=view)[:, 0]
    keys, values = zip(*view.made, strict=True)
    return hidden, torch.stack(keys, dim=1), torch.stack(values, dim=1)


def _keep(guards: Sequence[Any]) -> list[bool]:
    """Which conditions are checked before every pass: shapes alone, as network and cache stay what they are."""
    kept: list[bool] = torch.compiler.skip_guard_on_all_nn_modules_unsafe(guards)
    return kept
