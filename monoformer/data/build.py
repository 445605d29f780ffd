"""From a data configuration to its source: the one place that knows them all.

Knows nothing of tokens or models. Invariant: the same configuration, split and seed give the same stream.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import assert_never

from monoformer.config.data import (
    DataConfig,
    FolderData,
    MixtureData,
    ParquetData,
    ScenesData,
    SourceConfig,
    TextData,
    check_named,
)
from monoformer.config.sources import CacheData, ChatData, InterleavedData, StreamData
from monoformer.data.cache import Cache, read_record
from monoformer.data.chat import Chats
from monoformer.data.images import FolderPictures, ParquetPictures
from monoformer.data.interleaved import Interleaved
from monoformer.data.scenes import Scenes
from monoformer.data.source import Indexed, Mixture, Source, Split, seed_of
from monoformer.data.streams import Stream
from monoformer.data.text import TextFiles


def build_source(
    config: DataConfig, *, split: Split = "train", seed: int = 0, readers: int = 1, later: bool = False
) -> Source:
    """The endless stream of a configuration; ValueError where its data is missing or unusable.

    `readers`: threads of each source that decode pictures; the stream is the same for any number. `later`: pictures
    are left to be read when they are needed, and one that is broken is found then (`Document.read`).
    """
    sources = build_parts(config, split=split, seed=seed, readers=readers, later=later)
    return Mixture(sources, weights=config.weights, seed=seed) if isinstance(config, MixtureData) else sources[0]


def build_parts(
    config: DataConfig, *, split: Split = "train", seed: int = 0, readers: int = 1, later: bool = False
) -> list[Source]:
    """The sources of a mixture one by one, or the only one there is."""
    if not isinstance(config, MixtureData):
        name = name_source(config)
        return [build_single(config, split=split, seed=seed, name=name, readers=readers, later=later)]
    # Every source has a seed of its own, or two scene sources would draw the same scenes.
    return [
        build_single(source, split=split, seed=seed_of(place, seed), name=name, readers=readers, later=later)
        for place, (source, name) in enumerate(zip(config.sources, names_of(config.sources), strict=True))
    ]


def build_single(
    config: SourceConfig, *, split: Split, seed: int, name: str, readers: int = 1, later: bool = False
) -> Source:
    """The endless stream of one source."""
    check_named(config)
    match config:
        case ScenesData(documents=documents):
            return Indexed(Scenes(config, split=split, seed=seed).document, name=name, length=documents)
        case FolderData():
            folder = FolderPictures(config, split=split, seed=seed)
            return Indexed(folder.document, name=name, length=folder.length, readers=readers, later=later)
        case ParquetData():
            table = ParquetPictures(config, split=split, seed=seed)
            return Indexed(table.document, name=name, length=table.length, readers=readers, later=later)
        case TextData():
            text = TextFiles(config, split=split, seed=seed)
            return Indexed(text.document, name=name, length=text.length)
        case ChatData():
            chats = Chats(config, split=split, seed=seed)
            return Indexed(chats.document, name=name, length=len(chats.rows), readers=readers, later=later)
        case InterleavedData():
            pages = Interleaved(config, split=split, seed=seed)
            return Indexed(pages.document, name=name, length=len(pages.rows), readers=readers, later=later)
        case StreamData():
            return Stream(config, split=split, seed=seed, name=name, readers=readers, later=later)
        case CacheData(root=root) if split == "test":  # it holds what is trained on; the rest is with its source
            return build_single(read_record(root).encoding.source, split=split, seed=seed, name=name)
        case CacheData():
            cache = Cache(config, seed=seed)
            return Indexed(cache.document, name=name, length=cache.length, later=later)
        case _:
            assert_never(config)


def name_source(config: SourceConfig) -> str:
    """What a source is called in reports: the folder of its data."""
    match config:
        case ScenesData():
            return "scenes"
        case FolderData(root=root) | CacheData(root=root):
            return Path(root).resolve().name
        case StreamData(path=path) if path:
            return path.rstrip("/").rpartition("/")[2]
        case ParquetData(files=files) | TextData(files=files) | StreamData(files=files):
            place = Path(files[0]).resolve() if files else Path()
            return place.name if place.is_dir() else place.parent.name
        case ChatData(files=files) | InterleavedData(files=files):
            return Path(files[0]).stem if files else ""
        case _:
            assert_never(config)


def names_of(sources: Sequence[SourceConfig]) -> list[str]:
    """Names of the sources of a mixture; where two are called the same, their places tell them apart."""
    names = [name_source(source) for source in sources]
    return [f"{name} (sources.{at})" if names.count(name) > 1 else name for at, name in enumerate(names)]


def build_held_out(config: DataConfig, *, seed: int = 0) -> Source:
    """The stream of the test split; of a source that holds nothing out that of the training split."""
    if isinstance(config, MixtureData):
        parts = [build_held_out(source, seed=seed_of(place, seed)) for place, source in enumerate(config.sources)]
        return Mixture(parts, weights=config.weights, seed=seed)
    if isinstance(config, StreamData) and not config.holdout:
        return build_source(config, split="train", seed=seed)
    try:
        if isinstance(config, StreamData):
            next(iter(build_source(config, split="test", seed=seed)))  # only reading it shows whether it has rows
        return build_source(config, split="test", seed=seed)
    except ValueError:
        return build_source(config, split="train", seed=seed)
