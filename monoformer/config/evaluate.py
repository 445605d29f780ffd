"""What a finished model is scored by."""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from monoformer.config.data import ParquetData, TextData

SceneTask: TypeAlias = Literal["draw", "describe", "edit", "answer"]
"""What can be scored exactly on drawn scenes."""


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
class TextScores:
    """Perplexity of held-out text, by token and by byte."""

    name: str = "text"
    """What runs of a sweep call these scores; the scores' own names begin with it."""
    data: TextData = field(default_factory=TextData)
    """The text; its `holdout` share is read. Where a run trains on the same files, it must cut them the same way."""
    count: int = 512
    """Most documents that are read."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"{self.name}: text scores need a count of 1 or more, but have {self.count}")


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
        if not self.judge:
            raise ValueError(f"{self.name}: class scores need a judge, the safetensors file of a classifier")
        if self.prompt.count("{}") != 1:
            raise ValueError(f"{self.name}: prompt must hold {{}} once, where the class goes, but is {self.prompt!r}")
        if self.count < 2:
            raise ValueError(f"{self.name}: class scores need a count of 2 or more, but have {self.count}")


ScoreConfig: TypeAlias = SceneScores | TextScores | ClassScores
