"""Which suites fit a model's training data, and their scores while the training goes on."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from monoformer.config.data import DataConfig, FolderData, ParquetData, ScenesData, SourceConfig, TextData
from monoformer.config.evaluate import (
    CaptionScores,
    CompositionScores,
    SceneScores,
    ScoreConfig,
    TaskScores,
    TextScores,
)
from monoformer.config.run import RunConfig
from monoformer.data.build import names_of
from monoformer.data.images import FolderPictures, ParquetPictures
from monoformer.data.skipped import BadDocument
from monoformer.evaluate.build import build_evaluator
from monoformer.evaluate.material import sources
from monoformer.pipeline import Pipeline
from monoformer.train.build import Built


def fitting_suites(data: DataConfig) -> dict[str, ScoreConfig]:
    """The suites that need nothing but the data of training, as far as it is here."""
    kinds = sources(data)
    named = {name: source for name, source in zip(names_of(kinds), kinds, strict=True) if here(source)}
    scenes = [source for source in named.values() if isinstance(source, ScenesData)]
    told_apart = {name: count for name, source in named.items() if (count := different_captions(source)) >= 4}
    found: dict[str, ScoreConfig] = {}
    if scenes:
        found["scenes"] = SceneScores()
    if scenes and (scenes[0].left_out or scenes[0].left_out_objects):
        found["composition"] = CompositionScores()
    if any(isinstance(source, TextData) and source.holdout for source in named.values()):
        found["text"] = TextScores()
    for name, count in [*told_apart.items()][:1]:
        found["captions"] = CaptionScores(source=name, cider=False, among=max(2, min(10, count // 4)))
    return found


def here(source: SourceConfig) -> bool:
    """Whether its files can be read on this machine."""
    match source:
        case TextData() | ParquetData():
            return all(Path(file).exists() for file in source.files)
        case FolderData():
            return Path(source.root).exists()
        case _:
            return True


@cache
def different_captions(source: SourceConfig) -> int:
    """How many there are of the pictures that it holds out, where captions are learned at all; counted once."""
    match source:
        case ParquetData(describe=share, holdout=count) if share and count:
            return _count(ParquetPictures(source, split="test"))
        case FolderData(describe=share) if share:
            pictures = FolderPictures(source, split="test")
            return _count(pictures) if pictures.holds_out else 0
        case _:
            return 0


def _count(pictures: ParquetPictures | FolderPictures) -> int:
    found: set[str] = set()
    for row in pictures.rows:
        with suppress(BadDocument):  # training skips it too
            found.add(pictures.captions(row)[0])
    return len(found)


def check_scored(config: RunConfig) -> None:
    """Refuse to score while training what no suite fits, rather than to write down nothing."""
    if config.train.evaluate_every and not fitting_suites(config.data):
        raise ValueError(
            "train.evaluate_every needs data that a suite fits: drawn scenes, or held-out texts or described pictures "
            "(holdout above 0); set it to 0, and score the model with: monoformer evaluate MODEL --suite ..."
        )


def with_given(config: Any, given: Mapping[str, int]) -> Any:
    """The configuration, and those within it, with these fields in the place of their own; pictures that captions are
    told from are never too few for that.
    """
    own = {f.name: given[f.name] for f in fields(config) if f.name in given}
    if isinstance(config, CaptionScores) and "count" in own and config.among < CaptionScores().among:
        own["count"] = max(own["count"], 4 * config.among)
    inner = {
        f.name: with_given(value, given)
        for f in fields(config)
        if isinstance(value := getattr(config, f.name), TextScores | TaskScores)
    }
    return replace(config, **own, **inner)


def build_scores(built: Built, pipeline: Pipeline) -> Callable[[int, dict[str, Tensor]], dict[str, float]]:
    """scores(step, averaged weights): what `monoformer evaluate` says of `train.evaluate_count` held-out items of each
    fitting suite, by a pipeline whose network is never the one that is trained.
    """
    data, count = built.parts.config.data, built.parts.config.train.evaluate_count
    suites = [with_given(suite, {"count": count}) for suite in fitting_suites(data).values()]
    evaluators = [build_evaluator(suite, pipeline, data=data, batch=count) for suite in suites]

    def scores(step: int, weights: dict[str, Tensor]) -> dict[str, float]:
        pipeline.load_weights(built.plain(weights))
        return {name: float(value) for evaluator in evaluators for name, value in evaluator.run()}

    return scores
