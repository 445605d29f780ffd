"""What a finished model is scored by: one configuration a suite, a closed union of them."""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from monoformer.config.data import ParquetData, TextData

SceneTask: TypeAlias = Literal["draw", "describe", "edit", "answer"]
"""What can be scored exactly on drawn scenes."""


def check_count(name: str, count: int, *, least: int = 1) -> None:
    """Refuse scores that would be taken over fewer items than they need."""
    if count < least:
        raise ValueError(f"{name}: these scores need a count of {least} or more, but have {count}")


@dataclass(frozen=True, kw_only=True)
class SceneScores:
    """Shares of held-out scenes, of the kind that the run trains on, that are drawn, described, ... exactly right."""

    name: str = "scenes"
    """What runs of a sweep call these scores."""
    tasks: tuple[SceneTask, ...] = ("draw", "describe", "edit", "answer")
    """What is asked of the model."""
    count: int = 256
    """Held-out items of each task."""
    seed: int = 0
    """Seed of the items."""

    def __post_init__(self) -> None:
        if not self.tasks or self.count < 1:
            raise ValueError(f"{self.name}: scene scores need at least one task and a count of 1 or more")


@dataclass(frozen=True, kw_only=True)
class CompositionScores:
    """The same of scenes with colour-shape pairs, or with a number of objects, that training left out
    (`data.left_out`, `data.left_out_objects`).
    """

    name: str = "composition"
    """What runs of a sweep call these scores."""
    pairs: tuple[str, ...] = ()
    """Pairs to ask for, such as 'red circle'; empty: those that the run left out. Named, they let a run that saw
    everything be asked the same."""
    objects: int = 0
    """The number of objects to ask for; 0: the one that the run left out."""
    tasks: tuple[SceneTask, ...] = ("draw", "describe")
    """What is asked of the model."""
    count: int = 256
    """Items of each task, with a pair and with a number that was left out."""
    seed: int = 0
    """Seed of the items."""

    def __post_init__(self) -> None:
        check_count(self.name, self.count)
        if not self.tasks or not {"draw", "describe"}.issuperset(self.tasks):
            raise ValueError(
                f"{self.name}: composition scores are of the tasks draw and describe, but have {self.tasks}"
            )


@dataclass(frozen=True, kw_only=True)
class TextScores:
    """Perplexity of held-out text, by token, byte and word."""

    name: str = "text"
    """What runs of a sweep call these scores; the scores' own names begin with it."""
    data: TextData = field(default_factory=TextData)
    """The text; its `holdout` share is read. Where a run trains on the same files, it must cut them the same way."""
    whole: bool = False
    """Read the files whole, each as one document in strided windows: a test set that no run trains on."""
    stride: int = 0
    """Tokens between two windows of what is longer than the context; 0: half the context."""
    count: int = 512
    """Most documents that are read."""

    def __post_init__(self) -> None:
        if self.stride < 0:
            raise ValueError(f"{self.name}: stride must be 0 or more, but is {self.stride}")
        check_count(self.name, self.count)


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """Share of drawn pictures that a classifier takes for what was asked; Frechet distance of its features."""

    name: str = "classes"
    """What runs of a sweep call these scores."""
    judge: str = ""
    """Safetensors file of the classifier (`monoformer.evaluate.resnet` says of which form)."""
    real: ParquetData = field(default_factory=ParquetData)
    """Real pictures that the drawn ones are compared with; not those of training."""
    prompt: str = "Please generate an image of {}."
    """What asks for a class: {} is its name."""
    count: int = 1000
    """Pictures drawn, the classes in turn."""
    seed: int = 0
    """Seed of the first picture."""

    def __post_init__(self) -> None:
        if self.prompt.count("{}") != 1:
            raise ValueError(f"{self.name}: prompt must hold {{}} once, where the class goes, but is {self.prompt!r}")
        check_count(self.name, self.count, least=2)


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """How near drawn pictures are to real ones on a named extractor of features: Frechet distance, Inception Score,
    precision and recall. Only the distance on Inception's features is called FID.
    """

    name: str = "images"
    """What runs of a sweep call these scores."""
    extractor: str = "inception"
    """inception (torch-fidelity's); a classifier's .safetensors file (`monoformer.evaluate.resnet` says of which form);
    or a TorchScript file, whose code runs only with `trust`."""
    weights: str = ""
    """File of Inception's weights in torch-fidelity's form; empty: it downloads its own."""
    trust: bool = False
    """Run the code that a TorchScript file holds."""
    reference: str = ""
    """Real pictures: a folder, or an .npz in ADM's form (`arr_0`, or `mu` and `sigma`); empty: the pictures of the
    run's own held-out documents."""
    prompts: str = ""
    """File of prompts, one a line, or JSON lines with a `prompt`, used in turn; empty: those of the run's held-out
    documents."""
    drawn: str = ""
    """An .npz of pictures (`arr_0`) to score instead of drawing any."""
    count: int = 1000
    """Pictures drawn, and held-out documents that prompts and real pictures come from."""
    seed: int = 0
    """Seed of the first picture and of the order of the documents."""
    neighbours: int = 3
    """k of the nearest neighbours of precision and recall (arXiv 1904.06991)."""
    splits: int = 10
    """Parts whose Inception Scores are averaged."""
    cache: str = "runs/references"
    """Folder that keeps the features of reference pictures."""

    def __post_init__(self) -> None:
        check_count(self.name, self.count, least=2)
        if self.neighbours < 1 or not 1 <= self.splits <= self.count:
            raise ValueError(
                f"{self.name}: neighbours must be 1 or more and splits from 1 to the count of {self.count}, "
                f"but they are {self.neighbours} and {self.splits}"
            )
        if self.weights and self.extractor != "inception":
            raise ValueError(f"{self.name}: weights are Inception's, but the extractor is {self.extractor!r}")
        if self.drawn and self.prompts:
            raise ValueError(f"{self.name}: nothing is drawn where drawn pictures are given; leave the prompts out")


@dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """Captions of real pictures: CIDEr of those written, and how often the right one is the likeliest of many."""

    name: str = "captions"
    """What runs of a sweep call these scores."""
    data: ParquetData = field(default_factory=ParquetData)
    """Pictures with captions, all of them; without files: the run's own held-out pictures."""
    source: str = ""
    """The one of the run's own sources whose pictures are shown, by the name in its metrics, such as 'emoji128'; empty:
    the first one with captions."""
    seen: bool = False
    """Pictures that the run trained on, in the place of those that it held out: whether it knows what it was shown."""
    count: int = 256
    """Pictures shown."""
    among: int = 100
    """Captions that the right one is told from; 0 leaves that score out."""
    cider: bool = True
    """Whether captions are written and scored (needs the extra `evaluate`)."""
    drawn: bool = False
    """Show the model its own drawings of the captions in the place of the pictures."""
    seed: int = 0
    """Seed of the choice of pictures, of the other captions, and of the first drawing."""

    def __post_init__(self) -> None:
        check_count(self.name, self.count, least=2)
        if self.among < 0 or self.among == 1 or not (self.among or self.cider):
            raise ValueError(f"{self.name}: among must be 2 or more, or 0 with cider, but is {self.among}")
        if self.data.files and (self.source or self.seen):
            raise ValueError(
                f"{self.name}: source and seen choose among the run's own pictures; leave them or files out"
            )


@dataclass(frozen=True, kw_only=True)
class TaskScores:
    """Multiple-choice tasks about language and the world, as lm_eval asks and counts them, from local files."""

    name: str = "tasks"
    """What runs of a sweep call these scores."""
    folder: str = ""
    """Folder of the files: arc_easy.jsonl, hellaswag_val_full.txt.bz2, ... (docs/evaluate.md says of which form)."""
    tasks: tuple[str, ...] = ()
    """Tasks; empty: all of MonoFormer's seven that the folder holds."""
    harness: tuple[str, ...] = ()
    """Tasks of lm_eval, by its own names, which it runs itself (needs the extra `evaluate`)."""
    harness_path: str = ""
    """Folder of more task files for lm_eval."""
    count: int = 0
    """Most items of each task, the first ones; 0: all."""

    def __post_init__(self) -> None:
        check_count(self.name, self.count, least=0)


@dataclass(frozen=True, kw_only=True)
class ForgettingScores:
    """Language before and after: the text and task scores of another model beside this one's, and what was lost."""

    name: str = "forgetting"
    """What runs of a sweep call these scores."""
    before: str = ""
    """The model before: a model folder, or a language model's folder or hub name; empty: what the run started from."""
    text: TextScores = field(default_factory=TextScores)
    """Text that both read; without files, none."""
    tasks: TaskScores = field(default_factory=TaskScores)
    """Tasks that both do; without a folder, none."""


ScoreConfig: TypeAlias = (
    SceneScores
    | CompositionScores
    | TextScores
    | ClassScores
    | ImageScores
    | CaptionScores
    | TaskScores
    | ForgettingScores
)
