"""The documents of a step that a run left out, read again from what it wrote down.

Knows nothing of the network. Invariant: the documents are those of the step, whatever the number of processes was.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from monoformer.config.run import RunConfig
from monoformer.data.build import build_source
from monoformer.data.skipped import BadDocument
from monoformer.document import Document
from monoformer.packing import Row
from monoformer.train.build import load_rows
from monoformer.train.sizes import sized
from monoformer.train.survey import started


@dataclass(frozen=True, kw_only=True)
class BadStep:
    """A step without a finite gradient: its number, its losses, and its documents by number in the stream."""

    step: int
    losses: Mapping[str, str]
    documents: Mapping[int, Document]
    sources: Mapping[int, str]
    """Where each of the documents is from."""


def read_bad_step(path: Path, config: RunConfig) -> BadStep:
    """What `bad-steps/step-N.json` of the run of `config` stands for. ValueError for a file that is none."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        step, losses, place = int(told["step"]), dict(told["losses"]), dict(told["loader"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no step that a run wrote down ({error}); give RUN/bad-steps/step-N.json") from None
    config, tokenizer = started(config)
    if tokenizer is None:
        raise ValueError(f"the run of {path} has no tokenizer; its folder must be as the run left it")
    config = replace(config, data=sized(config.data, config.model), train=replace(config.train, pass_rows=0))
    source = build_source(config.data, split="train", seed=config.seed, later=True)
    with load_rows(config, source, tokenizer, collate=_numbers) as loader:
        loader.load_state_dict(place)
        numbers = next(loader)
    documents = _read(config, place, numbers)
    sources = {number: source.origin(number) for number in numbers}
    return BadStep(step=step, losses=losses, documents=documents, sources=sources)


def _numbers(rows: list[Row]) -> list[int]:
    return [layout.document for row in rows for layout in row]


def _read(config: RunConfig, place: Mapping[str, Any], numbers: list[int]) -> dict[int, Document]:
    source, first = build_source(config.data, split="train", seed=config.seed), int(place["document"])
    source.load_state_dict(place["source"])
    found = dict(enumerate(islice(source, max(numbers) + 1 - first), start=first))
    return {number: found[number] for number in numbers if not isinstance(found[number], BadDocument)}  # type: ignore[misc]
