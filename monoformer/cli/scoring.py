"""Which suites fit a model's training data, and their scores while the training goes on."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from monoformer.config.data import DataConfig, ScenesData, TextData
from monoformer.config.evaluate import CompositionScores, SceneScores, ScoreConfig, TaskScores, TextScores
from monoformer.evaluate.build import build_evaluator
from monoformer.evaluate.material import sources
from monoformer.pipeline import Pipeline
from monoformer.train.build import Built


def fitting_suites(data: DataConfig) -> dict[str, ScoreConfig]:
    """The suites that need nothing but the data of training."""
    kinds = sources(data)
    scenes = [source for source in kinds if isinstance(source, ScenesData)]
    found: dict[str, ScoreConfig] = {}
    if scenes:
        found["scenes"] = SceneScores()
    if scenes and (scenes[0].left_out or scenes[0].left_out_objects):
        found["composition"] = CompositionScores()
    if any(isinstance(source, TextData) and source.holdout for source in kinds):
        found["text"] = TextScores()
    return found


def with_given(config: Any, given: Mapping[str, int]) -> Any:
    """The configuration, and those within it, with these fields in the place of their own."""
    own = {f.name: given[f.name] for f in fields(config) if f.name in given}
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
    evaluators = [
        build_evaluator(with_given(suite, {"count": count}), pipeline, data=data, batch=count)
        for suite in fitting_suites(data).values()
    ]

    def scores(step: int, weights: dict[str, Tensor]) -> dict[str, float]:
        pipeline.load_weights(built.plain(weights))
        return {name: float(value) for evaluator in evaluators for name, value in evaluator.run()}

    return scores
