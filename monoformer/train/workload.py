"""What a step reads, as far as a configuration tells without its data: rows of text and pictures, the network's shape.

Knows nothing of hardware. Invariant: nothing is downloaded, and no data is read; what is guessed is said.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from monoformer.config.data import MixtureData, ScenesData, SourceConfig, TextData
from monoformer.config.run import RunConfig
from monoformer.config.sources import ChatData, StreamData
from monoformer.pretrained import is_monoformer, read_folder_config
from monoformer.tokenizer import Tokenizer
from monoformer.train.operations import Seen

CAPTION = 34
"""Tokens beside the patches of a picture with its caption, special tokens included."""
LETTERS = 4
"""Characters of a token."""
VOCABULARY = 32_000
"""Tokens of a tokenizer that is not at hand."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What one forward pass on one device reads."""

    rows: int
    tokens: int
    """Tokens of a row, padding too."""
    labelled: int
    """Tokens with a label."""
    images: int
    """Images, all of them drawn."""
    grid: tuple[int, int]
    """Height and width of an image in patches."""

    @property
    def patches(self) -> int:
        """Patches of all images."""
        return self.images * self.grid[0] * self.grid[1]

    def times(self, factor: float) -> "Pass":
        """The same mixture in so many times the rows, at least one."""
        rows = max(1, round(self.rows * factor))
        share = rows / self.rows
        labelled, images = round(self.labelled * share), round(self.images * share)
        return replace(self, rows=rows, labelled=labelled, images=max(images, min(1, self.images)))


def resolved(config: RunConfig) -> tuple[RunConfig, tuple[str, ...]]:
    """The run with the shape and vocabulary that it would have, and what was guessed of it."""
    model, start = config.model, Path(config.start) if config.start else None
    if start and (start / "config.json").is_file() and is_monoformer(start):
        return replace(config, model=read_folder_config(start).model), ()
    if model.vocabulary:
        return config, ()
    if not config.tokenizer.path and not config.start:
        return replace(config, model=replace(model, vocabulary=config.tokenizer.vocabulary)), ()
    found = [Path(place) for place in (config.tokenizer.path, config.start) if place and Path(place).is_dir()]
    size = Tokenizer.from_folder(str(found[0])).size if found else VOCABULARY
    guess = (
        () if found else (f"a vocabulary of {VOCABULARY:,}, since {config.tokenizer.path or config.start} is not here",)
    )
    return replace(config, model=replace(model, vocabulary=size)), guess


def compose(config: RunConfig, *, rows: int, images: float = -1.0) -> tuple[Pass, float, str]:
    """A pass of `rows` rows, how many tokens a token sees on average, and what was guessed.

    `images`: pictures of a row; below 0 it is estimated from the kinds of sources.
    """
    row, (height, width) = config.sequence.row, config.model.image_sizes[0]
    grid = height // config.model.cell, width // config.model.cell
    patches = grid[0] * grid[1]
    documents = _documents(config, patches)
    weight = sum(share for share, _, _ in documents)
    tokens = sum(share * length for share, length, _ in documents) / weight
    drawn = sum(share * count for share, _, count in documents) / weight
    fit = row / tokens
    if len(documents) == 1 and drawn:  # documents of one length leave the rest of the row empty
        fit = math.floor(fit)
    in_row = images if images >= 0 else min(fit * drawn, row / patches)
    total = round(rows * in_row)
    seen = sum(share * (length**2 + count * patches**2) / 2 for share, length, count in documents) / weight / tokens
    load = Pass(rows=rows, tokens=row, labelled=max(1, rows * row - total * patches), images=total, grid=grid)
    return load, seen, f"{in_row:.1f} pictures of {patches} tokens to a row of {row}, all drawn, all text labelled"


def seen_by(load: Pass, seen: float) -> Seen:
    """What the weights see in a pass whose tokens see so many others each."""
    tokens = float(load.rows * load.tokens)
    return Seen(
        tokens=tokens, image_tokens=load.patches, patches=load.patches, targets=load.patches, images=load.images,
        features=0, labelled=load.labelled, pairs=tokens * seen,
    )  # fmt: skip


def _documents(config: RunConfig, patches: int) -> list[tuple[float, float, float]]:
    """Share, tokens and pictures of a document of every source."""
    data = config.data
    sources = data.sources if isinstance(data, MixtureData) else (data,)
    weights = data.weights if isinstance(data, MixtureData) else (1.0,)
    return [
        (weight, min(own[0], config.sequence.row), own[1])
        for weight, own in zip(weights, (_document(source, patches) for source in sources), strict=True)
    ]


def _document(source: SourceConfig, patches: int) -> tuple[float, float]:
    match source:
        case TextData(characters=characters):
            return characters / LETTERS, 0.0
        case ChatData() | StreamData() if source.characters and not source.size:
            return source.characters / LETTERS, 0.0
        case ScenesData():
            one, two = source.draw + source.describe + source.question, source.edit
            weight = one + two + source.story + source.caption
            pictures = (one + 2 * two) / weight
            return CAPTION + pictures * patches, pictures
        case _:
            return patches + CAPTION, 1.0
