"""From a configuration of scores to what computes them: the one place that knows them all."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import assert_never

from monoformer.config.data import DataConfig, TextData
from monoformer.config.evaluate import (
    CaptionScores,
    ClassScores,
    CompositionScores,
    ForgettingScores,
    ImageScores,
    SceneScores,
    ScoreConfig,
    TaskScores,
    TextScores,
)
from monoformer.data.images import ParquetPictures
from monoformer.data.scenes import Scenes
from monoformer.data.scenes.omission import LeftOut
from monoformer.document import Document, Image
from monoformer.evaluate.captions import CaptionEvaluator
from monoformer.evaluate.evaluator import Evaluator, Together
from monoformer.evaluate.extractors import load_extractor
from monoformer.evaluate.forgetting import ForgettingEvaluator, load_before
from monoformer.evaluate.harness import HarnessEvaluator
from monoformer.evaluate.images import ClassEvaluator, ImageEvaluator
from monoformer.evaluate.journal import Journal
from monoformer.evaluate.likelihood import ROWS
from monoformer.evaluate.material import captioned, held_out_text, read_whole, scenes_of, sources
from monoformer.evaluate.peer import Peer
from monoformer.evaluate.prompts import held_out_drawings, prompts_of
from monoformer.evaluate.references import Pictures, open_drawn, open_reference
from monoformer.evaluate.resnet import load_resnet
from monoformer.evaluate.scenes import SceneEvaluator
from monoformer.evaluate.tasks import TaskEvaluator, read_tasks
from monoformer.evaluate.text import TextEvaluator
from monoformer.framing import framed
from monoformer.pipeline import Pipeline

BATCH = 64
"""Items in one call of the pipeline."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model and how it is scored."""

    pipeline: Pipeline
    data: DataConfig | None
    """What it was trained on; None: nobody knows."""
    start: str = ""
    """What its run started from."""
    journal: Journal = field(default_factory=Journal)
    batch: int = BATCH
    """Items drawn or read at a time."""
    samples: Path | None = None
    """Where pictures drawn for `ImageScores` go; of those for `CaptionScores` one picture, as .png."""
    peer: Peer | None = None
    """What draws in the model's place, for scenes and images."""

    @property
    def drawer(self) -> Pipeline | Peer:
        """What draws."""
        return self.peer or self.pipeline

    @property
    def rows(self) -> int:
        """Packed rows of text read at a time: one holds several items."""
        return max(1, self.batch * ROWS // BATCH)


def build_evaluator(
    config: ScoreConfig,
    pipeline: Pipeline,
    *,
    data: DataConfig | None,
    start: str = "",
    journal: Journal | None = None,
    batch: int = BATCH,
    samples: Path | None = None,
    peer: Peer | None = None,
) -> Evaluator:
    """The evaluator of these scores for a model that was trained on `data`; ValueError where they do not fit.

    The other arguments are the fields of `Subject`.
    """
    journal = journal or Journal()
    subject = Subject(
        pipeline=pipeline, data=data, start=start, journal=journal, batch=batch, samples=samples, peer=peer
    )
    if peer and not isinstance(config, SceneScores | ImageScores):
        raise ValueError(f"{config.name}: a peer draws and does nothing else; its suites are scenes and images")
    if not (peer or isinstance(config, TextScores | TaskScores | ForgettingScores)):
        pipeline.prepare_pictures()
    match config:
        case SceneScores():
            return build_scenes(config, subject)
        case CompositionScores():
            return build_composition(config, subject)
        case TextScores():
            return build_text(config, subject)
        case ClassScores():
            return build_classes(config, subject)
        case ImageScores():
            return build_images(config, subject)
        case CaptionScores():
            return build_captions(config, subject)
        case TaskScores():
            return build_tasks(config, subject)
        case ForgettingScores():
            return build_forgetting(config, subject)
        case _:
            assert_never(config)


def build_scenes(config: SceneScores, subject: Subject) -> SceneEvaluator:
    """Held-out scenes."""
    return SceneEvaluator(
        subject.drawer,
        scenes_of(subject.data, subject.pipeline, name=config.name),
        count=config.count,
        seed=config.seed,
        tasks=config.tasks,
        chunk=subject.batch,
        journal=subject.journal,
    )


def build_composition(config: CompositionScores, subject: Subject) -> Together:
    """Scenes with a pair that was left out, and scenes with the number that was."""
    own = scenes_of(subject.data, subject.pipeline, name=config.name)
    pairs, objects = config.pairs or own.left_out, config.objects or own.left_out_objects
    scenes = replace(own, left_out=pairs, left_out_objects=objects)
    kinds: list[LeftOut] = ["pairs"] if scenes.left_out else []
    kinds += ["objects"] if scenes.left_out_objects else []
    if not kinds:
        raise ValueError(f"{config.name}: nothing was left out of this model's training; name pairs or objects")
    parts = [
        SceneEvaluator(
            subject.pipeline,
            scenes,
            count=config.count,
            tasks=config.tasks,
            chunk=subject.batch,
            journal=subject.journal,
            scenes=Scenes(scenes, split="test", seed=config.seed, left_out=kind),
            prefix=f"left_out_{kind}_",
        )
        for kind in kinds
    ]
    return Together(parts)


def build_text(config: TextScores, subject: Subject, *, vocabulary: int = 0) -> TextEvaluator:
    """The reader of the text that the scores name, else of what the run held out of its own."""
    if not config.data.files:
        own = [source for source in sources(subject.data) if isinstance(source, TextData)]
        if not own:
            raise ValueError(f"{config.name}: there is no text to read; name files, such as --text.data.files books/")
        config = replace(config, data=own[0])
    read = read_whole if config.whole else held_out_text
    return TextEvaluator(
        pretrained=subject.pipeline.pretrained,
        documents=read(config, subject.data),
        name=config.name,
        stride=config.stride,
        rows=subject.rows,
        vocabulary=vocabulary,
        journal=subject.journal,
    )


def build_classes(config: ClassScores, subject: Subject) -> ClassEvaluator:
    """The judge and the real pictures. Raises ValueError where either is not named."""
    if not config.judge or not config.real.files:
        raise ValueError(
            f"{config.name}: class scores need a judge, the safetensors file of a classifier, and real pictures: "
            f"--classes.judge FILE --classes.real.files FILE.parquet"
        )
    pictures = ParquetPictures(config.real)
    return ClassEvaluator(
        pipeline=subject.pipeline,
        judge=load_resnet(config.judge),
        real=[pictures.picture(row) for row in pictures.rows],
        prompt=config.prompt,
        count=config.count,
        seed=config.seed,
        chunk=subject.batch,
        journal=subject.journal,
    )


def build_images(config: ImageScores, subject: Subject) -> ImageEvaluator:
    """Prompts and real pictures from files, and what is not given from the run's held-out documents."""
    pretrained = subject.pipeline.pretrained
    size, shape = pretrained.model.config.image_sizes[0], pretrained.picture_shape
    own: list[tuple[Document, Image]] = []
    if not config.reference or not (config.prompts or config.drawn):
        if subject.data is None:
            raise ValueError(f"{config.name}: what the model was trained on is not known; name prompts and a reference")
        own = held_out_drawings(subject.data, count=config.count, seed=config.seed, name=config.name)
    prompts = [document for document, _ in own]
    if config.prompts:
        prompts = prompts_of(Path(config.prompts), count=config.count)
    same = [Image.from_pil(framed(image.to_pil(), (size,), shape=shape)).pixels for _, image in own]
    distinct = {pixels.numpy().tobytes(): pixels for pixels in same}
    real = Pictures.listed(list(distinct.values()))
    return ImageEvaluator(
        pipeline=subject.drawer,
        extractor=load_extractor(config, device=pretrained.model.tokens.weight.device),
        prompts=[] if config.drawn else prompts,
        drawn=open_drawn(config.drawn) if config.drawn else None,
        real=open_reference(config.reference, size=size, shape=shape) if config.reference else real,
        cache=Path(config.cache),
        seed=config.seed,
        neighbours=config.neighbours,
        splits=config.splits,
        chunk=subject.batch,
        samples=subject.samples,
        journal=subject.journal,
    )


def build_captions(config: CaptionScores, subject: Subject) -> CaptionEvaluator:
    """Pictures with captions, named or the run's own."""
    return CaptionEvaluator(
        pipeline=subject.pipeline,
        shown=captioned(config, subject.data),
        among=config.among,
        cider=config.cider,
        drawn=config.drawn,
        seen=config.seen,
        seed=config.seed,
        chunk=subject.batch,
        samples=subject.samples.with_suffix(".png") if subject.samples else None,
        journal=subject.journal,
    )


def build_tasks(config: TaskScores, subject: Subject, *, vocabulary: int = 0) -> Together:
    """Local tasks, and those that lm_eval runs itself."""
    parts: list[Evaluator] = []
    if config.folder:
        items = read_tasks(config.folder, config.tasks, count=config.count)
        parts.append(
            TaskEvaluator(
                pretrained=subject.pipeline.pretrained,
                items=items,
                rows=subject.rows,
                vocabulary=vocabulary,
                journal=subject.journal,
            )
        )
    if config.harness:
        parts.append(
            HarnessEvaluator(
                pipeline=subject.pipeline,
                tasks=config.harness,
                path=config.harness_path,
                count=config.count,
                rows=subject.rows,
                journal=subject.journal,
            )
        )
    if not parts:
        raise ValueError(f"{config.name}: there are no tasks; name their folder, --tasks.folder FOLDER")
    return Together(parts)


def build_forgetting(config: ForgettingScores, subject: Subject) -> ForgettingEvaluator:
    """Text and tasks on this model and on the one before."""
    name = config.before or subject.start
    if not name:
        raise ValueError(f"{config.name}: the model was trained from nothing; name another, --forgetting.before MODEL")
    if config.tasks.harness:
        raise ValueError(f"{config.name}: lm_eval's own tasks are not compared; name a folder of tasks")
    if not config.text.data.files and not config.tasks.folder:
        raise ValueError(
            f"{config.name}: there is nothing to read; name text or tasks, --forgetting.text.data.files FILE or "
            f"--forgetting.tasks.folder FOLDER"
        )
    model, vocabulary = load_before(name, subject.pipeline.pretrained)
    before = replace(subject, pipeline=Pipeline(model, slots=2), journal=subject.journal.part("before"))
    after = replace(subject, journal=subject.journal.part("after"))
    return ForgettingEvaluator(_language(config, before, vocabulary), _language(config, after, 0))


def _language(config: ForgettingScores, subject: Subject, vocabulary: int) -> Together:
    parts: list[Evaluator] = []
    if config.text.data.files:
        parts.append(build_text(config.text, subject, vocabulary=vocabulary))
    if config.tasks.folder:
        parts.append(build_tasks(config.tasks, subject, vocabulary=vocabulary))
    return Together(parts)
