"""Sources of conversations, interleaved documents and streams; the others are in data.py."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from monoformer.config.bounds import check_numbers, check_weights

Shape: TypeAlias = Literal["crop", "resize", "bucket"]
"""How a picture gets its size: crop resizes the shorter side and cuts the centre out, resize stretches it to a square,
bucket takes the nearest in shape of several sizes, so that pictures of any shape stay nearly whole."""
Sizes: TypeAlias = tuple[tuple[int, int], ...]
"""Heights and widths in pixels."""


@dataclass(frozen=True, kw_only=True)
class ChatData:
    """Conversations: OpenAI `messages`, ShareGPT `conversations`, UltraChat `data`, LLaVA's with pictures, and pairs.

    Pairs are instruction (and input) with response or output, question with answer, prompt with completion, after the
    pairs of their history. A row may have a system text. Pictures of the user are read, those of the assistant drawn.
    """

    files: tuple[str, ...] = ()
    """JSON lines, JSON arrays or parquet files."""
    images: str = ""
    """Folder of the pictures; empty: that of the file that names them."""
    size: int = 0
    """Side of crop and resize in pixels. 0: the model's default."""
    shape: Shape = "crop"
    """How a picture gets its size."""
    buckets: Sizes = ()
    """(height, width) of the sizes for shape = bucket; empty: the model's image sizes."""
    characters: int = 0
    """A longer conversation ends with the last answer within so many characters; 0: never."""
    holdout: float = 0.01
    """Share of the conversations kept for `split = test`."""

    def __post_init__(self) -> None:
        check_shape(self.shape, self.buckets, self.size)
        check_numbers(self, "characters", room="data", least=0)
        check_numbers(self, "holdout", room="data", least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class InterleavedData:
    """Text and pictures in any order, as JSON lines: {"segments": [{"text": "..."}, {"image": "a.png"}, ...]}.

    A segment may have a "role" (system, user, assistant; then all have one), an image also a "target": whether it is
    drawn. Without it `draw` decides in plain documents, and in a chat the assistant's images are drawn.
    """

    files: tuple[str, ...] = ()
    """JSON lines, JSON arrays or parquet files."""
    images: str = ""
    """Folder of the pictures; empty: that of the file that names them."""
    size: int = 0
    """Side of crop and resize in pixels. 0: the model's default."""
    shape: Shape = "crop"
    """How a picture gets its size."""
    buckets: Sizes = ()
    """(height, width) of the sizes for shape = bucket; empty: the model's image sizes."""
    draw: bool = True
    """Whether the model learns to draw the pictures of plain documents, or only to read them."""
    holdout: float = 0.01
    """Share of the documents kept for `split = test`."""

    def __post_init__(self) -> None:
        check_shape(self.shape, self.buckets, self.size)
        check_numbers(self, "holdout", room="data", least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class StreamData:
    """A Hugging Face data set read from its start to its end and over again, never held whole: from the hub, from
    webdataset tars, parquet or JSON lines. Its rows are pictures with captions, plain text or conversations.
    """

    path: str = ""
    """Name of a data set on the hub, or a folder that `datasets` can read."""
    files: tuple[str, ...] = ()
    """Files instead of a path: all .tar (webdataset), all .parquet, all .jsonl or all .json."""
    configuration: str = ""
    """The data set's configuration on the hub, where it has several."""
    part: str = "train"
    """The data set's own split that is read."""
    chat: bool = False
    """Whether rows are conversations in any form of ChatData; then columns, caption, draw and describe do nothing."""
    characters: int = 0
    """A longer conversation ends with the last answer within so many characters; 0: never."""
    images: str = ""
    """Folder of pictures that rows name by a path; empty: that of the first file."""
    image_column: str = "image"
    """Column of pictures (of a tar: jpg, or several, jpg;png, of which a row has one); empty: there are none, and the
    captions are plain text."""
    caption: str = "{caption}"
    """Caption made of columns, as for parquet files (of a tar: {txt}; of a column that holds JSON: {json.key})."""
    size: int = 0
    """Side of crop and resize in pixels. 0: the model's default."""
    shape: Shape = "crop"
    """How a picture gets its size."""
    buckets: Sizes = ()
    """(height, width) of the sizes for shape = bucket; empty: the model's image sizes."""
    prompt: str = "{}"
    """Template around the caption of a picture that is to be drawn, e.g. 'Please generate an image of {}.'"""
    prompts: tuple[str, ...] = ()
    """Several templates in place of `prompt`; each document takes one of them."""
    draw: float = 3.0
    """Relative weight of caption -> picture documents."""
    describe: float = 1.0
    """Relative weight of picture -> caption documents."""
    flip: bool = False
    """Whether pictures are mirrored at random."""
    block: int = 1000
    """Rows that are shuffled together, beside the order of the shards."""
    holdout: float = 0.01
    """Share of the rows kept for `split = test`."""

    def __post_init__(self) -> None:
        check_shape(self.shape, self.buckets, self.size)
        if self.path and self.files:
            raise ValueError(f"data.path is {self.path!r} and data.files are given too; give one of them")
        check_weights(self, "draw", "describe", room="data")
        if self.characters < 0 or (self.characters and not self.chat):
            raise ValueError(f"data.characters = {self.characters} cuts conversations; set data.chat, or leave it at 0")
        check_prompts(self.prompt, self.prompts)
        if (self.chat or not self.image_column) and (self.flip or self.prompts or self.prompt != "{}"):
            raise ValueError("data.flip, data.prompt and data.prompts are for pictures with captions; leave them out")
        check_numbers(self, "block", room="data", least=1)
        check_numbers(self, "holdout", room="data", least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class CacheData:
    """Documents whose pictures went through the autoencoder once: what `monoformer encode` made of another source."""

    root: str = ""
    """The folder that it wrote."""


def check_prompts(prompt: str, prompts: tuple[str, ...]) -> None:
    """Refuse templates that no caption can go into, and two settings that contradict each other."""
    if prompts and prompt != "{}":
        raise ValueError(f"data.prompts take the place of data.prompt, but it is {prompt!r}; give one of them")
    for template in (prompt, *prompts):
        if template.count("{}") != 1:
            raise ValueError(f"data.prompt must hold {{}} once, where the caption goes, but is {template!r}")


def check_shape(shape: Shape, buckets: Sizes, size: int) -> None:
    """Refuse sizes that would have no effect or cannot be."""
    if size < 0 or any(min(bucket) < 1 for bucket in buckets):
        raise ValueError(f"data.size and data.buckets must be positive pixels, but are {size} and {buckets}")
    if buckets and shape != "bucket":
        raise ValueError(f"data.buckets are given, but data.shape is {shape!r}; set data.shape to bucket")
