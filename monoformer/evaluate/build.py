"""From a configuration of scores to what computes them: the one place that knows them all."""

from collections.abc import Iterator
from typing import Protocol, assert_never

from monoformer.config.data import DataConfig, MixtureData, ScenesData, TextData
from monoformer.config.evaluate import ClassScores, SceneScores, ScoreConfig, TextScores
from monoformer.data.images import ParquetPictures
from monoformer.data.text import TextFiles
from monoformer.evaluate.images import ClassEvaluator
from monoformer.evaluate.resnet import load_resnet
from monoformer.evaluate.scenes import SceneEvaluator
from monoformer.evaluate.text import TextEvaluator
from monoformer.pipeline import Pipeline


class Evaluator(Protocol):
    """What scores a model."""

    def run(self) -> Iterator[tuple[str, float]]:
        """Scores by name."""
        ...


def build_evaluator(config: ScoreConfig, pipeline: Pipeline, *, data: DataConfig) -> Evaluator:
    """The evaluator of these scores for a model that was trained on `data`; ValueError where they do not fit."""
    match config:
        case SceneScores(tasks=tasks, count=count, seed=seed):
            scenes = [source for source in sources(data) if isinstance(source, ScenesData)]
            if not scenes:
                raise ValueError(f"{config.name}: scene scores are for runs on scenes, but this one trains on none")
            return SceneEvaluator(pipeline, scenes[0], count=count, seed=seed, tasks=tasks)
        case TextScores(data=text, count=count):
            check_held_out(text, data)
            files = TextFiles(text, split="test")
            documents = [files.document(number) for number in range(min(count, files.length))]
            return TextEvaluator(pretrained=pipeline.pretrained, documents=documents, name=config.name)
        case ClassScores(judge=judge, real=real, prompt=prompt, count=count, seed=seed):
            pictures = ParquetPictures(real)
            shown = [pictures.picture(row) for row in pictures.rows]
            return ClassEvaluator(
                pipeline=pipeline, judge=load_resnet(judge), real=shown, prompt=prompt, count=count, seed=seed
            )
        case _:
            assert_never(config)


def sources(data: DataConfig) -> tuple[DataConfig, ...]:
    """The single sources of a mixture; anything else alone."""
    return data.sources if isinstance(data, MixtureData) else (data,)


def check_held_out(text: TextData, data: DataConfig) -> None:
    """Refuse to test on text that a run trains on: what is held out depends on how files are cut."""
    for source in sources(data):
        if isinstance(source, TextData) and set(source.files) & set(text.files):
            given, trained = (text.characters, text.holdout), (source.characters, source.holdout)
            if given != trained or not text.holdout:
                raise ValueError(
                    f"text scores read {', '.join(text.files)} with characters and holdout {given}, but the run trains "
                    f"on them with {trained}: it may have seen what is tested; give both the same, holdout above 0"
                )
