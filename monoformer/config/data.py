"""What a run reads: one source of documents (or a mixture), and how documents become packed rows."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from monoformer.config.bounds import check_numbers, check_weights
from monoformer.config.sources import (
    CacheData,
    ChatData,
    InterleavedData,
    Shape,
    Sizes,
    StreamData,
    check_prompts,
    check_shape,
)

QuestionForm: TypeAlias = Literal[
    "colour", "shape", "size", "background", "where", "things", "count", "exists", "relation"
]
"""What a question about a scene asks for (`data/scenes/questions.py` has the words)."""


@dataclass(frozen=True, kw_only=True)
class ScenesData:
    """Drawn scenes with exact captions, edits, questions and stories; made from a seed without limit."""

    size: int = 64
    """Side of the square pictures in pixels."""
    objects: tuple[int, int] = (1, 3)
    """Fewest and most objects in a scene."""
    draw: float = 4.0
    """Relative weight of caption -> picture documents."""
    describe: float = 2.0
    """Relative weight of picture -> caption documents."""
    edit: float = 2.0
    """Relative weight of picture + instruction -> picture documents."""
    question: float = 1.0
    """Relative weight of picture + question -> answer documents."""
    question_turns: int = 1
    """Different questions, with their answers, about the picture of such a document: more learned from one picture."""
    further_questions: tuple[QuestionForm, ...] = ()
    """Forms of the questions after the first about one picture, asked as often as they are listed; all forms
    where a picture has not enough of them, and with none listed. The first question is always of any form."""
    story: float = 1.0
    """Relative weight of documents of text alone."""
    caption: float = 0.0
    """Relative weight of captions as text alone, without their pictures (to learn the language before the pictures)."""
    brief: float = 0.0
    """Share of the drawing documents whose caption leaves out the background, the sizes or both, as people write:
    "a red circle". What it leaves out is drawn as it comes."""
    documents: int = 0
    """Number of different documents; after them the same ones come again in another order. 0: without end."""
    left_out: tuple[str, ...] = ()
    """Pairs of colour and shape that no document shows or names, such as 'red circle': whether the model can put them
    together all the same is the suite `composition` of `monoformer evaluate`."""
    left_out_objects: int = 0
    """A number of objects, within `objects`, that no scene has, for the same suite; 0: none."""

    def __post_init__(self) -> None:
        if not 1 <= self.objects[0] <= self.objects[1] <= 3:
            raise ValueError(f"data.objects must satisfy 1 <= fewest <= most <= 3, but is {self.objects}")
        check_numbers(self, "size", room="data", least=16)
        check_weights(self, "draw", "describe", "edit", "question", "story", "caption", room="data")
        check_numbers(self, "documents", room="data", least=0)
        if not 1 <= self.question_turns <= 8:
            raise ValueError(f"data.question_turns must be from 1 to 8, but is {self.question_turns}")
        if self.further_questions and self.question_turns == 1:
            raise ValueError("data.further_questions come after the first; set data.question_turns to 2 or more")
        if not 0 <= self.brief <= 1:
            raise ValueError(f"data.brief is a share of the drawing documents, from 0 to 1, but is {self.brief}")
        fewest, most = self.objects
        if self.left_out_objects and not (fewest <= self.left_out_objects <= most and fewest < most):
            raise ValueError(
                f"data.left_out_objects must be 0 or one of several numbers in data.objects = {self.objects}, but is "
                f"{self.left_out_objects}"
            )


@dataclass(frozen=True, kw_only=True)
class FolderData:
    """A folder of pictures; captions from metadata.csv or metadata.jsonl, else .txt files, else the class folders."""

    root: str = ""
    """The folder."""
    size: int = 0
    """Side of crop and resize in pixels. 0: the model's default."""
    shape: Shape = "crop"
    """How a picture gets its size."""
    buckets: Sizes = ()
    """(height, width) of the sizes for shape = bucket; empty: the model's image sizes."""
    class_names: str = ""
    """File of the class folders' names: lines 'FOLDER NAME, SYNONYM' (ImageNet's synset file; the first name counts),
    or JSON {folder: name}. Empty: the folders' own names."""
    prompt: str = "{}"
    """Template around the caption or class name, e.g. 'Please generate an image of {}.'"""
    prompts: tuple[str, ...] = ()
    """Several templates in place of `prompt`; each document takes one of them."""
    draw: float = 3.0
    """Relative weight of caption -> picture documents."""
    describe: float = 1.0
    """Relative weight of picture -> caption documents."""
    flip: bool = False
    """Whether pictures are mirrored at random."""

    def __post_init__(self) -> None:
        check_shape(self.shape, self.buckets, self.size)
        check_prompts(self.prompt, self.prompts)
        check_weights(self, "draw", "describe", room="data")


@dataclass(frozen=True, kw_only=True)
class ParquetData:
    """Hugging Face parquet files with a column of pictures and columns of text."""

    files: tuple[str, ...] = ()
    """Paths of the parquet files."""
    image_column: str = "image"
    """Column of pictures."""
    caption: str = "{caption}"
    """Caption made of columns, such as '{name}[, {tone} skin tone]'; parts in [ ] vanish when a column is empty."""
    size: int = 64
    """Side of crop and resize in pixels."""
    shape: Shape = "crop"
    """How a picture gets its size."""
    buckets: Sizes = ()
    """(height, width) of the sizes for shape = bucket; empty: the model's image sizes."""
    draw: float = 3.0
    """Relative weight of caption -> picture documents."""
    describe: float = 1.0
    """Relative weight of picture -> caption documents."""
    edit: float = 0.0
    """Relative weight of picture + instruction -> picture documents, made from rows alike but for edit_column."""
    edit_group: str = ""
    """Column that rows of one edit pair share."""
    edit_column: str = ""
    """Column in which they differ."""
    instruction: str = "Change it to {}."
    """Instruction of an edit; {} is the second row's edit_column."""
    holdout: int = 0
    """Leave out this many rows of the training split (the last ones of a seeded order); `split = test` reads them."""
    holdout_pairs: int = 0
    """Leave out this many (edit_group, edit_column) combinations whose group has other rows left."""

    def __post_init__(self) -> None:
        check_shape(self.shape, self.buckets, self.size)
        if self.edit > 0 and not (self.edit_group and self.edit_column):
            raise ValueError(
                "data.edit is above 0, but data.edit_group or data.edit_column is empty; name both columns"
            )
        if self.instruction.count("{}") != 1:
            raise ValueError(f"data.instruction must hold {{}} once, but is {self.instruction!r}")
        check_weights(self, "draw", "describe", "edit", room="data")
        check_numbers(self, "holdout", "holdout_pairs", room="data", least=0)


@dataclass(frozen=True, kw_only=True)
class TextData:
    """Plain text files, cut into documents at paragraph ends."""

    files: tuple[str, ...] = ()
    """Paths of UTF-8 files, or of folders whose .txt files are read."""
    characters: int = 1000
    """Longest document in characters."""
    holdout: float = 0.05
    """Share of the documents kept for `split = test`."""

    def __post_init__(self) -> None:
        check_numbers(self, "characters", room="data", least=1)
        check_numbers(self, "holdout", room="data", least=0, below=1)


SourceConfig: TypeAlias = (
    ScenesData | FolderData | ParquetData | TextData | ChatData | InterleavedData | StreamData | CacheData
)
PicturesConfig: TypeAlias = FolderData | ParquetData | ChatData | InterleavedData | StreamData
"""Sources whose pictures come from files and are given a size."""


@dataclass(frozen=True, kw_only=True)
class MixtureData:
    """Several sources, drawn from by weight."""

    sources: tuple[SourceConfig, ...] = ()
    """The sources."""
    weights: tuple[float, ...] = ()
    """Share of documents from each, in the same order."""

    def __post_init__(self) -> None:
        if not self.sources or len(self.sources) != len(self.weights):
            raise ValueError(
                f"data.sources and data.weights must be as long as each other and not empty, "
                f"but have {len(self.sources)} and {len(self.weights)} entries"
            )
        check_numbers(self, "weights", room="data", above=0)


DataConfig: TypeAlias = SourceConfig | MixtureData


def single_sources(config: DataConfig) -> tuple[SourceConfig, ...]:
    """The sources of a mixture; anything else alone."""
    return config.sources if isinstance(config, MixtureData) else (config,)


def caches(config: DataConfig) -> tuple[CacheData, ...]:
    """Those sources that are caches of latents."""
    return tuple(source for source in single_sources(config) if isinstance(source, CacheData))


def check_named(config: DataConfig, *, where: str = "data") -> None:
    """Refuse data whose files nobody named: presets leave them open."""
    match config:
        case FolderData(root=""):
            raise ValueError(f"{where}.root is empty; give a folder of pictures, e.g. --{where}.root pictures/")
        case ParquetData(files=()):
            raise ValueError(f"{where}.files is empty; give parquet files, e.g. --{where}.files train.parquet")
        case TextData(files=()):
            raise ValueError(f"{where}.files is empty; give text files or folders of .txt, e.g. --{where}.files books/")
        case ChatData(files=()) | InterleavedData(files=()):
            raise ValueError(f"{where}.files is empty; give JSON lines, e.g. --{where}.files conversations.jsonl")
        case StreamData(path="", files=()):
            raise ValueError(f"{where}.path is empty; give a data set's name on the hub, or --{where}.files SHARDS.tar")
        case CacheData(root=""):
            raise ValueError(f"{where}.root is empty; give a folder that monoformer encode wrote")
        case MixtureData(sources=sources):
            for place, source in enumerate(sources):
                check_named(source, where=f"{where}.sources.{place}")
        case _:
            pass


@dataclass(frozen=True, kw_only=True)
class SequenceConfig:
    """How documents are laid out and packed (DESIGN 4)."""

    row: int = 512
    """Length of a packed row in tokens."""
    window: int = 1024
    """Documents that are packed together; the unit of order and resume."""
    context: Literal["noised", "clean_copy"] = "clean_copy"
    """What later tokens see of an earlier drawn image: its noised tokens (Transfusion) or a clean copy."""
    noise_draws: int = 1
    """Noised blocks of each target image side by side, each with its own time and noise; the text before them is read
    once for all. More than 1 needs context = clean_copy."""
    noise_limit: float = 0.0
    """Above 0, a picture directly before its caption is no clean context but a target, trained at this share of the
    noise levels, the lowest (Transfusion: 0.5, t <= 500 of 1000; its captions come first in 80% of the pairs, which is
    `draw` to `describe` as 4 to 1). 0: such a picture is context."""
    drop_text: float = 0.1
    """Probability, per target image without context images, of dropping everything before it (guidance)."""
    drop_context: float = 0.05
    """With context images: probability of dropping the text, of dropping the images, and of dropping both (each)."""
    text_loss_in_image_documents: bool = True
    """False leaves text labels out of documents that hold a target image (as the released MonoFormer code does)."""
    learned_text: Literal["answers", "all"] = "answers"
    """Which texts of a chat are learned: the assistant's, or the user's as well as in both papers' recipes (all text in
    Transfusion, `train_on_source` in the released MonoFormer code). The chat template's own tokens never are."""

    def __post_init__(self) -> None:
        if not 0 <= self.drop_text <= 1 or not 0 <= 3 * self.drop_context <= 1:
            raise ValueError("sequence.drop_text must be in [0, 1] and sequence.drop_context in [0, 1/3]")
        check_numbers(self, "noise_limit", room="sequence", least=0, most=1)
        if self.noise_limit and self.context != "noised":
            raise ValueError(
                f"sequence.noise_limit = {self.noise_limit} is for captions that read the noised picture, but with "
                f"sequence.context = {self.context!r} they read a clean copy; use context noised, or noise_limit 0"
            )
        check_numbers(self, "row", room="sequence", least=2)
        check_numbers(self, "window", "noise_draws", room="sequence", least=1)
        if self.noise_draws > 1 and self.context == "noised":
            raise ValueError(
                f"sequence.noise_draws is {self.noise_draws}, but with sequence.context = noised later text would see "
                f"them all; use context = clean_copy or noise_draws = 1"
            )


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Where token ids come from."""

    path: str = ""
    """Folder or hub name of a Hugging Face tokenizer; empty: a byte-level BPE is trained on the run's own text."""
    vocabulary: int = 1024
    """Size of the trained BPE, special tokens included; 266: each byte is a token of its own."""

    def __post_init__(self) -> None:
        if not self.path and self.vocabulary < 266:
            raise ValueError(
                f"tokenizer.vocabulary must be at least 266 (256 bytes and 10 special tokens), but is {self.vocabulary}"
            )
