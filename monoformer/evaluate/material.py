"""What evaluators read and show: scenes, text and captioned pictures, of the run's own held-out data or named files.

Knows data, nothing of scores. Invariant: nothing that the run may have trained on is handed out as held out.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random

from torch import Tensor

from monoformer.config.data import (
    DataConfig,
    FolderData,
    ParquetData,
    ScenesData,
    SourceConfig,
    TextData,
    single_sources,
)
from monoformer.config.evaluate import CaptionScores, TextScores
from monoformer.config.sources import CacheData
from monoformer.config.spelling import hint
from monoformer.data.build import names_of
from monoformer.data.cache import read_record
from monoformer.data.captions import read_text
from monoformer.data.images import FolderPictures, ParquetPictures
from monoformer.data.scenes import Scenes, draw
from monoformer.data.skipped import BadDocument
from monoformer.data.source import Split
from monoformer.data.text import TextFiles, text_files
from monoformer.document import Document, Text
from monoformer.pipeline import Pipeline

Captioned = tuple[Tensor, tuple[str, ...]]
"""A picture, uint8 (3, H, W), and its captions."""


def sources(data: DataConfig | None) -> tuple[SourceConfig, ...]:
    """The single sources of a run, those of its caches of latents in the place of these."""
    found = () if data is None else single_sources(data)
    return tuple(read_record(s.root).encoding.source if isinstance(s, CacheData) else s for s in found)


def scenes_of(data: DataConfig | None, pipeline: Pipeline, *, name: str) -> ScenesData:
    """The scenes that a model was trained on; where nobody knows, scenes of the size that it draws."""
    if data is None:
        return ScenesData(size=pipeline.pretrained.model.config.image_sizes[0][0])
    scenes = [source for source in sources(data) if isinstance(source, ScenesData)]
    if not scenes:
        raise ValueError(f"{name}: scene scores are for runs on scenes, but this one trains on none")
    return scenes[0]


def read_whole(config: TextScores, data: DataConfig | None) -> list[Document]:
    """Every file as one document; none that the run trains on."""
    check_held_out(replace(config.data, holdout=0.0), data)
    texts = [text for path in text_files(config.data)[: config.count] if (text := read_text(path)).strip()]
    if not texts:
        raise ValueError(f"{config.name}: {', '.join(config.data.files)} holds no text; name other files")
    return [Document((Text(text),)) for text in texts]


def held_out_text(config: TextScores, data: DataConfig | None) -> list[Document]:
    """The documents that are held out, in the shuffled order of seed 0."""
    check_held_out(config.data, data)
    files = TextFiles(config.data, split="test")
    return [files.document(number) for number in range(min(config.count, files.length))]


def check_held_out(text: TextData, data: DataConfig | None) -> None:
    """Refuse to test on text that a run trains on: what is held out depends on how files are cut."""
    for source in sources(data):
        if isinstance(source, TextData) and _places(source) & _places(text):
            given, trained = (text.characters, text.holdout), (source.characters, source.holdout)
            if given != trained or not text.holdout:
                raise ValueError(
                    f"text scores read {', '.join(text.files)} with characters and holdout {given}, but the run trains "
                    f"on them with {trained}: it may have seen what is tested; give both the same, holdout above 0"
                )


def _places(text: TextData) -> set[Path]:
    """Where the files really are, however they are named, as far as they are on this machine."""
    named = {Path(name).resolve() for name in text.files}
    with suppress(ValueError):
        named |= {path.resolve() for path in text_files(text)}
    return named


def captioned(config: CaptionScores, data: DataConfig | None) -> list[Captioned]:
    """Pictures with all their captions: some of the named files', else of the run's own, held out or seen."""
    named = bool(config.data.files)
    split: Split = "train" if named or config.seen else "test"  # a named file is all for the test
    for source in (config.data,) if named else own_sources(config, data):
        match source:
            case ScenesData(size=size):
                scenes = Scenes(source, split=split, seed=config.seed)
                shown = [scenes.describing(i) for i in range(config.count)]
                return [(draw(example.scene, size), (example.caption,)) for example in shown]
            case ParquetData():
                return read_all(ParquetPictures(source, split=split), config)
            case FolderData():
                pictures = FolderPictures(source, split=split)
                if split == "test" and not pictures.holds_out:
                    raise ValueError(
                        f"{config.name}: {source.root} is too small to hold out pictures, so that all were trained on; "
                        f"give --captions.seen, or other files"
                    )
                return read_all(pictures, config)
            case _:
                continue
    raise ValueError(f"{config.name}: there are no pictures with captions; name files, --captions.data.files FILE")


def read_all(pictures: ParquetPictures | FolderPictures, config: CaptionScores) -> list[Captioned]:
    """Some of the pictures; those that cannot be used, which training skips too, are left out."""
    found: list[Captioned] = []
    for row in some(pictures.rows, config):
        with suppress(BadDocument):
            found.append((pictures.picture(row), pictures.captions(row)))
    if not found:
        raise ValueError(f"{config.name}: none of the pictures can be used; monoformer data check says why")
    return found


def own_sources(config: CaptionScores, data: DataConfig | None) -> tuple[SourceConfig, ...]:
    """The run's sources, or the one that is asked for; ValueError where it has none of that name."""
    found = sources(data)
    names = names_of(found)
    if not config.source:
        return found
    if config.source not in names:
        say = hint(config.source, names, otherwise=f"it has {', '.join(names) or 'none'}")
        raise ValueError(f"{config.name}: the run has no source {config.source!r}; {say}")
    return (found[names.index(config.source)],)


def some(rows: Sequence[int], config: CaptionScores) -> list[int]:
    """As many rows as are shown, chosen by the seed: files often have their pictures in some order."""
    return Random(repr((config.seed, "shown"))).sample(list(rows), min(config.count, len(rows)))
