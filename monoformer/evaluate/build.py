"""From a configuration of scores to what computes them: the one place that knows them all."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, assert_never

from monoformer.config.data import DataConfig, MixtureData, ScenesData, SourceConfig, TextData
from monoformer.config.evaluate import ClassScores, CompositionScores, ImageScores, SceneScores, ScoreConfig, TextScores
from monoformer.data.captions import read_text
from monoformer.data.images import ParquetPictures
from monoformer.data.scenes import Scenes
from monoformer.data.scenes.omission import LeftOut
from monoformer.data.text import TextFiles, text_files
from monoformer.document import Document, Text
from monoformer.evaluate.extractors import load_extractor
from monoformer.evaluate.images import ClassEvaluator, ImageEvaluator
from monoformer.evaluate.journal import Journal
from monoformer.evaluate.prompts import held_out_drawings, read_prompts
from monoformer.evaluate.references import Pictures, open_drawn, open_reference
from monoformer.evaluate.resnet import load_resnet
from monoformer.evaluate.scenes import SceneEvaluator
from monoformer.evaluate.text import TextEvaluator
from monoformer.pipeline import Pipeline

BATCH = 64
"""Items in one call of the pipeline."""


class Evaluator(Protocol):
    """What scores a model."""

    @property
    def total(self) -> int:
        """Items that its journal will be told of."""
        ...

    def run(self) -> Iterator[tuple[str, float]]:
        """Scores by name; a `Score` where the spread is known."""
        ...


@dataclass(frozen=True)
class Together:
    """Several evaluators, one after the other."""

    parts: Sequence[Evaluator]

    @property
    def total(self) -> int:
        """Items of all."""
        return sum(part.total for part in self.parts)

    def run(self) -> Iterator[tuple[str, float]]:
        """All their scores."""
        for part in self.parts:
            yield from part.run()


def build_evaluator(
    config: ScoreConfig,
    pipeline: Pipeline,
    *,
    data: DataConfig | None,
    start: str = "",
    journal: Journal | None = None,
    batch: int = BATCH,
    samples: Path | None = None,
) -> Evaluator:
    """The evaluator of these scores for a model that was trained on `data`; ValueError where they do not fit.

    `data` None: nobody knows; `start` is what its run started from. `batch` items are drawn or read at a
    time. Pictures drawn for `ImageScores` go to `samples`.
    """
    journal = journal or Journal()
    match config:
        case SceneScores(tasks=tasks, count=count, seed=seed):
            return SceneEvaluator(
                pipeline,
                scenes_of(data, pipeline, name=config.name),
                count=count,
                seed=seed,
                tasks=tasks,
                chunk=batch,
                journal=journal,
            )
        case CompositionScores(tasks=tasks, count=count, seed=seed):
            scenes = scenes_of(data, pipeline, name=config.name)
            kinds: list[LeftOut] = [
                *(["pairs"] if scenes.left_out else []),
                *(["objects"] if scenes.left_out_objects else []),
            ]
            if not kinds:
                raise ValueError(f"{config.name}: nothing was left out of this model's training (data.left_out)")
            parts = [
                SceneEvaluator(
                    pipeline,
                    scenes,
                    count=count,
                    tasks=tasks,
                    chunk=batch,
                    journal=journal,
                    scenes=Scenes(scenes, split="test", seed=seed, left_out=kind),
                    prefix=f"left_out_{kind}_",
                )
                for kind in kinds
            ]
            return Together(parts)
        case TextScores():
            return build_text(config, pipeline, data=data, journal=journal)
        case ClassScores(judge=judge, real=real, prompt=prompt, count=count, seed=seed):
            pictures = ParquetPictures(real)
            shown = [pictures.picture(row) for row in pictures.rows]
            return ClassEvaluator(
                pipeline=pipeline,
                judge=load_resnet(judge),
                real=shown,
                prompt=prompt,
                count=count,
                seed=seed,
                chunk=batch,
                journal=journal,
            )
        case ImageScores():
            return build_images(config, pipeline, data=data, journal=journal, batch=batch, samples=samples)
        case _:
            assert_never(config)


def build_text(
    config: TextScores, pipeline: Pipeline, *, data: DataConfig | None, journal: Journal, vocabulary: int = 0
) -> TextEvaluator:
    """The reader of the text that the scores name, else of what the run held out of its own."""
    text = config.data
    if not text.files:
        own = [source for source in sources(data) if isinstance(source, TextData)]
        if not own:
            raise ValueError(f"{config.name}: there is no text to read; name files, such as --text.data.files books/")
        config = replace(config, data=own[0])
    documents = read_whole(config, data) if config.whole else held_out_text(config, data)
    return TextEvaluator(
        pretrained=pipeline.pretrained,
        documents=documents,
        name=config.name,
        stride=config.stride,
        vocabulary=vocabulary,
        journal=journal,
    )


def read_whole(config: TextScores, data: DataConfig | None) -> list[Document]:
    """Every file as one document; none that the run trains on."""
    check_held_out(replace(config.data, holdout=0.0), data)
    return [Document((Text(read_text(path)),)) for path in text_files(config.data)[: config.count]]


def held_out_text(config: TextScores, data: DataConfig | None) -> list[Document]:
    """The documents that are held out, in the shuffled order of seed 0."""
    check_held_out(config.data, data)
    files = TextFiles(config.data, split="test")
    return [files.document(number) for number in range(min(config.count, files.length))]


def build_images(
    config: ImageScores,
    pipeline: Pipeline,
    *,
    data: DataConfig | None,
    journal: Journal,
    batch: int,
    samples: Path | None,
) -> ImageEvaluator:
    """Prompts and real pictures from files, and what is not given from the run's held-out documents."""
    model = pipeline.pretrained.model
    own = []
    if not config.reference or not (config.prompts or config.drawn):
        if data is None:
            raise ValueError(f"{config.name}: what the model was trained on is not known; name prompts and a reference")
        own = held_out_drawings(data, count=config.count, seed=config.seed, name=config.name)
    real = [image.pixels for _, image in own]
    distinct = list({pixels.numpy().tobytes(): pixels for pixels in real}.values())
    size = model.config.image_sizes[0][0]
    prompts = [document for document, _ in own]
    if config.prompts:
        prompts = read_prompts(read_text(Path(config.prompts)), count=config.count)
    return ImageEvaluator(
        pipeline=pipeline,
        extractor=load_extractor(config, device=model.tokens.weight.device),
        prompts=[] if config.drawn else prompts,
        drawn=open_drawn(config.drawn) if config.drawn else None,
        real=open_reference(config.reference, size=size) if config.reference else Pictures.listed(distinct),
        cache=Path(config.cache),
        seed=config.seed,
        neighbours=config.neighbours,
        splits=config.splits,
        chunk=batch,
        samples=samples,
        journal=journal,
    )


def scenes_of(data: DataConfig | None, pipeline: Pipeline, *, name: str) -> ScenesData:
    """The scenes that a model was trained on; where nobody knows, scenes of the size that it draws."""
    if data is None:
        return ScenesData(size=pipeline.pretrained.model.config.image_sizes[0][0])
    scenes = [source for source in sources(data) if isinstance(source, ScenesData)]
    if not scenes:
        raise ValueError(f"{name}: scene scores are for runs on scenes, but this one trains on none")
    return scenes[0]


def sources(data: DataConfig | None) -> tuple[SourceConfig, ...]:
    """The single sources of a mixture; anything else alone."""
    if data is None:
        return ()
    return data.sources if isinstance(data, MixtureData) else (data,)


def check_held_out(text: TextData, data: DataConfig | None) -> None:
    """Refuse to test on text that a run trains on: what is held out depends on how files are cut."""
    for source in sources(data):
        if isinstance(source, TextData) and set(source.files) & set(text.files):
            given, trained = (text.characters, text.holdout), (source.characters, source.holdout)
            if given != trained or not text.holdout:
                raise ValueError(
                    f"text scores read {', '.join(text.files)} with characters and holdout {given}, but the run trains "
                    f"on them with {trained}: it may have seen what is tested; give both the same, holdout above 0"
                )
