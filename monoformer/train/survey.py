"""What the documents of a run are like, before it is trained: counts, lengths, pictures, errors, padding.

Reads as training does, but nothing of the network. Invariant: what is reported of a source is of the first documents
that a run would read of it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import quantiles

import torch

from monoformer.batch import IGNORED, Layout
from monoformer.config.data import FolderData, MixtureData, SourceConfig, single_sources
from monoformer.config.run import RunConfig
from monoformer.data.build import build_parts
from monoformer.data.images import no_pictures
from monoformer.data.skipped import BadDocument, Tally
from monoformer.data.source import Indexed, Source, choose
from monoformer.document import Document, Text
from monoformer.packing import best_fit
from monoformer.pretrained import build_sequencer, find_folder, is_monoformer, read_pretrained
from monoformer.randomness import uniform
from monoformer.sequence import Sequencer
from monoformer.tokenizer import Tokenizer
from monoformer.train.build import find_tokenizer, plan_all, train_tokenizer
from monoformer.train.sizes import check_sizes, sized
from monoformer.train.start import taking


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The first documents of one source."""

    name: str
    length: int
    """Items that the source is made of; 0: without end, or not known."""
    documents: list[Document]
    """Those that can be used."""
    layouts: list[Layout]
    tally: Tally
    left: Counter[str]
    """Files of a folder of pictures that are taken for none, by the ends of their names."""

    def figures(self) -> Iterator[tuple[str, str]]:
        """What there is to say, as names and values."""
        yield "items", str(self.length) if self.length else "without end or not known"
        if self.left:
            ends = ", ".join(f"{end}: {count}" for end, count in self.left.most_common(8))
            yield "files that are no pictures", f"{self.left.total()} ({ends})"
        yield "documents read", f"{self.tally.read(self.name)}, of which {len(self.documents)} can be used"
        for _, cause, count, examples in self.tally.entries():
            yield f"skipped: {cause}", f"{count} ({'; '.join(examples)})"
        if not self.documents:
            return
        lengths, texts = [len(layout) for layout in self.layouts], [_characters(d) for d in self.documents]
        patches = sum(block.grid[0] * block.grid[1] for layout in self.layouts for block in layout.blocks)
        labelled = sum(label != IGNORED for layout in self.layouts for label in layout.labels)
        yield "tokens a document", spread(lengths)
        yield (
            "share of the tokens",
            f"{patches / sum(lengths):.0%} patches, {labelled / sum(lengths):.0%} labelled text",
        )
        yield "characters a document", spread(texts)
        yield from self._pictures()

    def check(self, limit: float) -> None:
        """Raise ValueError where more than this share of its documents cannot be used."""
        self.tally.check(limit, lambda number: self.name)

    def _pictures(self) -> Iterator[tuple[str, str]]:
        images = [image for document in self.documents for image in document.images]
        if not images:
            return
        sizes = Counter(f"{image.pixels.shape[1]}x{image.pixels.shape[2]}" for image in images)
        drawn = sum(image.target for image in images)
        yield "pictures", f"{len(images)}, {drawn} to draw and {len(images) - drawn} to read"
        yield "height x width", ", ".join(f"{size}: {count}" for size, count in sizes.most_common(8))
        images = [image for image in images if image.has_pixels]
        if not images:
            return
        means = torch.stack([image.pixels.float().mean(dim=(1, 2)) for image in images])
        deviation = torch.stack([image.pixels.float().std() for image in images]).mean()
        blank = sum(bool(image.pixels.float().std() < 1) for image in images)
        red, green, blue = means.mean(dim=0).tolist()
        yield (
            "values from 0 to 255",
            f"mean red {red:.0f}, green {green:.0f}, blue {blue:.0f}; deviation {deviation:.0f}; {blank} of one color",
        )


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How a window of documents fills rows."""

    row: int
    rows: int
    """Rows of a step."""
    padding: float
    """Share of the tokens that stay empty."""


def check_data(config: RunConfig, *, count: int) -> tuple[list[Survey], Packing, Packing]:
    """Surveys of the sources, how the run's rows are filled, and how the best rows of nearly that length would be.

    Raises ValueError for settings that contradict the data.
    """
    config, tokenizer = started(config)
    config = replace(config, data=sized(config.data, config.model))
    check_sizes(config)
    sources = build_parts(config.data, seed=config.seed)
    sequencer = build_sequencer(config.model, tokenizer or train_tokenizer(config), config.sequence)
    surveys = [
        survey(source, sequencer, config, one, count=count)
        for source, one in zip(sources, single_sources(config.data), strict=True)
    ]
    lengths = mixed_lengths(surveys, config)
    if not lengths:
        found = [f"{cause} ({examples[0]})" for one in surveys for _, cause, _, examples in one.tally.entries()]
        raise ValueError(f"no document of the data can be used: {found[0]}")
    row, tokens = config.sequence.row, config.train.rows * config.sequence.row
    nearby = range(max(*lengths, row * 5 // 6), min(config.model.context, row * 6 // 5) + 1)
    best = min(nearby, key=lambda length: (padding(lengths, length), length), default=row)
    now, then = (
        Packing(row=length, rows=round(tokens / length), padding=padding(lengths, length)) for length in (row, best)
    )
    return surveys, now, then


def survey(source: Source, sequencer: Sequencer, config: RunConfig, own: SourceConfig, *, count: int) -> Survey:
    """Read the first documents of a source and lay them out."""
    found = list(enumerate(islice(source, count)))
    bad = {number: document for number, document in found if isinstance(document, BadDocument)}
    good = [(number, document) for number, document in found if isinstance(document, Document)]
    plans, refused = plan_all(sequencer, good, length=config.sequence.row, seed=config.seed)
    bad |= refused
    tally, name = Tally(), source.origin(0)
    for number, _ in found:
        tally.add(name, number, bad.get(number))
    documents = [document for number, document in good if number not in refused]
    length = source.length if isinstance(source, Indexed) else 0
    layouts = [sequencer.lay_out(plan) for plan in plans]
    left = no_pictures(Path(own.root)) if isinstance(own, FolderData) else Counter()
    return Survey(name=name, length=length, documents=documents, layouts=layouts, tally=tally, left=left)


def mixed_lengths(surveys: Sequence[Survey], config: RunConfig) -> list[int]:
    """Lengths of a window's documents in the mixture's shares; each source's come over again where they are too few."""
    weights = config.data.weights if isinstance(config.data, MixtureData) else (1.0,)
    places = [choose(weights, uniform(config.seed, number, "mixture")) for number in range(config.sequence.window)]
    taken: Counter[int] = Counter()
    lengths: list[int] = []
    for place in places:
        layouts = surveys[place].layouts
        if layouts:
            lengths.append(len(layouts[taken[place] % len(layouts)]))
            taken[place] += 1
    return lengths


def padding(lengths: Sequence[int], row: int) -> float:
    """Share of the tokens that stay empty in rows of that length."""
    return 1 - sum(lengths) / (row * len(best_fit(lengths, length=row)))


def spread(values: Sequence[int]) -> str:
    """Mean, median, 95% and largest of some numbers."""
    cuts = quantiles(values, n=20, method="inclusive") if len(values) > 1 else [values[0]] * 19
    mean = sum(values) / len(values)
    return f"mean {mean:.0f}, median {cuts[9]:.0f}, 95% up to {cuts[18]:.0f}, {min(values)} to {max(values)}"


def _characters(document: Document) -> int:
    return sum(len(segment.text) for segment in document.segments if isinstance(segment, Text))


def started(config: RunConfig) -> tuple[RunConfig, Tokenizer | None]:
    """The run with the shape and tokenizer of what it starts from; None: a tokenizer is still to be trained."""
    if not config.start:
        return config, find_tokenizer(config)
    folder = find_folder(config.start)
    if is_monoformer(folder):
        ours, _ = read_pretrained(folder)  # no weights
        return taking(config, ours), ours.tokenizer
    return config, Tokenizer.from_folder(config.tokenizer.path or str(folder))
