"""What the pipeline's callers may give, in the one form that it works with.

Knows nothing of models. Invariant: what cannot be meant is a ValueError that says what to give.
"""

import operator
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import UnidentifiedImageError

from monoformer.config.generate import GenerateConfig, changed, check_matters, from_words
from monoformer.config.run import from_json
from monoformer.config.spelling import hint
from monoformer.document import Document, Segment, upright

Picture: TypeAlias = PILImage.Image
PictureLike: TypeAlias = Picture | str | Path | NDArray[Any]
"""A PIL picture, the path of one, or an array (height, width, 3) of uint8."""


def read_texts(given: str | Sequence[str], *, name: str = "prompts", least: int = 0) -> tuple[str, ...]:
    """One text or several, but at least so many."""
    texts = (given,) if isinstance(given, str) else _each(given, f"{name} must be a text or a list of texts")
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"{name} must be texts, but one is {text!r}")
    if len(texts) < least:
        raise ValueError(f"{name} must be {least} or more, but there are {len(texts)}")
    return texts


def read_pictures(given: PictureLike | Sequence[PictureLike]) -> list[Picture]:
    """One picture or several; an array of four dimensions is several."""
    is_one = isinstance(given, Picture | str | Path) or (isinstance(given, np.ndarray) and given.ndim < 4)
    return [_picture(one) for one in ((given,) if is_one else _each(given, "pictures must be a picture or a list"))]


def read_masks(given: PictureLike | Sequence[PictureLike] | None, *, count: int) -> Sequence[Picture | None]:
    """A mask for each of `count` pictures: one is that of all; an array may be (height, width) too, also of bool or of
    floats from 0 to 1.
    """
    if given is None:
        return [None] * count
    is_one = isinstance(given, Picture | str | Path) or (isinstance(given, np.ndarray) and given.ndim < 3)
    masks = [_mask(one) for one in ((given,) if is_one else _each(given, "mask must be a picture or a list of them"))]
    if len(masks) not in (1, count):
        raise ValueError(f"there are {count} pictures but {len(masks)} masks; give one mask, or one for each picture")
    return masks * count if len(masks) == 1 else masks


def read_documents(given: Document | Sequence[Document]) -> list[Document]:
    """One document or several."""
    documents = [given] if isinstance(given, Document) else list(given)
    for one in documents:
        if not isinstance(one, Document):
            raise ValueError(f"documents are Document((Text(...), Image(...), ...)), but one is {one!r}")
    return documents


def read_size(given: SupportsIndex | Sequence[SupportsIndex] | None, *, want: str = "any") -> tuple[int, int] | None:
    """Height and width of a picture, where one may be wanted; one number is a square."""
    if given is None:
        return None
    if want == "text":
        raise ValueError("size has no effect where only text is wanted; leave it out")
    try:
        height, width = given if isinstance(given, Iterable) else (given, given)
        return operator.index(height), operator.index(width)
    except (TypeError, ValueError):
        raise ValueError(
            f"size must be a height and a width in pixels, such as (64, 64), or a square's side, but is {given!r}"
        ) from None


def read_talk(given: Document | Sequence[Segment]) -> Document:
    """A chat of segments with roles."""
    document = given if isinstance(given, Document) else Document(tuple(given))
    if not document.is_chat:
        raise ValueError('a chat needs roles: Text("hello", "user"), Image.from_pil(picture, role="user")')
    return document


def read_settings(
    given: Mapping[str, Any],
    defaults: GenerateConfig,
    *,
    documents: Sequence[Document],
    want: str = "any",
    chooses: bool = False,
) -> list[GenerateConfig]:
    """The settings of each document: the defaults with what is given, and seeds that follow each other.

    What cannot matter for what is wanted, or for an answer that is one of given ones, is refused.
    """
    kinds = typing.get_type_hints(GenerateConfig)
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name not in kinds:
            near = hint(name, kinds, otherwise=f"settings are {', '.join(kinds)}")
            raise ValueError(f"there is no generation setting {name!r}; {near}")
        if value is None:
            raise ValueError(f"{name} is None; leave it out for the model's own")
        if name != "seed":
            found[name] = from_json(kinds[name], _plain(name, value), where=f"generate.{name}")
    if "" in found.get("stop", ()):
        raise ValueError("stop has an empty string, which would end nothing; leave it out")
    check_matters(given, want=want, chooses=chooses)
    if found.get("image_guidance", 1.0) != 1 and not all(document.images for document in documents):
        raise ValueError("image_guidance has no effect without pictures to read; leave it out")
    if want == "image" and not any(document.images for document in documents):
        defaults = from_words(defaults)
    seeds = _seeds(given.get("seed", defaults.seed), len(documents))
    settings = changed(defaults, found)
    return [replace(settings, seed=seed) for seed in seeds]


def open_picture(path: Path) -> Picture:
    """A picture file, upright. Raises ValueError, naming the file, when it is missing or no picture."""
    try:
        with PILImage.open(path) as picture:
            picture.load()
            return upright(picture)
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except (UnidentifiedImageError, OSError, SyntaxError, PILImage.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from None


def _each(given: Any, wanted: str) -> tuple[Any, ...]:
    if not isinstance(given, Iterable):
        raise ValueError(f"{wanted}, but is {given!r}")
    return tuple(given)


def _picture(given: Any) -> Picture:
    if isinstance(given, Picture):
        return given
    if isinstance(given, str | Path):
        return open_picture(Path(given))
    if isinstance(given, np.ndarray) and given.dtype == np.uint8 and given.ndim == 3 and given.shape[2] == 3:
        return PILImage.fromarray(given)
    said = f"an array of {given.dtype} {given.shape}" if isinstance(given, np.ndarray) else repr(given)
    raise ValueError(
        f"a picture must be one of PIL's, the path of a file, or an array (height, width, 3) of uint8, but is {said}"
    )


def _mask(given: Any) -> Picture:
    if not isinstance(given, np.ndarray) or given.ndim != 2:
        return _picture(given)
    shares = given.astype(np.float64) * (1 / 255 if given.dtype == np.uint8 else 1)
    known = given.dtype in (np.uint8, np.bool_) or np.issubdtype(given.dtype, np.floating)
    if not known or not given.size or not 0 <= shares.min() <= shares.max() <= 1:
        raise ValueError(
            f"a mask must be a picture, or an array (height, width) of bool, of uint8, or of numbers from 0 to 1 as "
            f"floats, but is {given.dtype} of shape {given.shape}"
        )
    return PILImage.fromarray((shares * 255).round().astype(np.uint8))


def _plain(name: str, value: Any) -> Any:
    """As in a configuration's JSON form: numbers of Python, and tuples."""
    if name == "stop" and isinstance(value, str):
        return (value,)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        value = value.items()
    if isinstance(value, Iterable) and not isinstance(value, str):
        return tuple(_plain("", part) for part in value)
    return value


def _seeds(given: Any, count: int) -> list[int]:
    try:
        if not isinstance(given, Iterable):
            return [operator.index(given) + place for place in range(count)]
        seeds = [operator.index(seed) for seed in given]
    except TypeError:
        raise ValueError(f"seed must be a whole number, or a list of them, but is {given!r}") from None
    if len(seeds) != count:
        raise ValueError(f"there are {count} items but {len(seeds)} seeds; give one seed, or one for each item")
    return seeds


def matched(pictures: list[Picture], texts: tuple[str, ...]) -> tuple[str, ...]:
    """A text for each picture: one is that of all. Raises ValueError for another number of them."""
    if len(texts) == 1:
        texts *= len(pictures)
    if len(pictures) != len(texts):
        raise ValueError(
            f"there are {len(pictures)} pictures but {len(texts)} texts; give one text, or one for each picture"
        )
    return texts
