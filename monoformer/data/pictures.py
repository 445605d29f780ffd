"""Picture files to uint8 pixels of a size that a run has, now or later, and a bounded memory of them.

Knows nothing of captions or documents. Invariant: the same bytes and size give the same pixels, read at once or later;
whatever goes wrong is a `BadDocument` that names the picture.
"""

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch
from PIL import Image as PILImage
from torch import Tensor

from monoformer.config.data import PicturesConfig
from monoformer.config.sources import Shape, Sizes
from monoformer.data.skipped import BadDocument
from monoformer.document import Image, flat
from monoformer.framing import framed, nearest_size

CACHE_BYTES = 512 * 2**20
"""Most memory for decoded pictures: 43,690 of 64 x 64."""


Content: TypeAlias = Path | bytes
"""A picture file, or what is in one."""
TURNED = (5, 6, 7, 8)
"""Values of EXIF's orientation, 0x0112, at which height and width change places."""


def read_as(config: PicturesConfig, content: Content, *, name: str) -> Tensor:
    """A picture as a source's configuration asks for it: uint8 (3, height, width)."""
    return read_picture(content, sizes=sizes_of(config), shape=config.shape, name=name)


def picture_later(config: PicturesConfig, content: Content, *, name: str) -> Image:
    """The same, to be read when it is needed: only its size is found now."""
    sizes = sizes_of(config)
    size = find_size(content, sizes=sizes, name=name)
    read = partial(read_picture, content, sizes=sizes, shape=config.shape, name=name, size=size)
    return Image.of_size(size, later=read)


def sizes_of(config: PicturesConfig) -> Sizes:
    """The sizes that the pictures of a source may get."""
    size, buckets = config.size, config.buckets
    sizes = buckets if config.shape == "bucket" else ((size, size),)
    if not sizes or min(map(min, sizes)) < 1:
        raise ValueError(
            f"data.shape is {config.shape!r}, but data.size is {size} and data.buckets {buckets}; give a size"
        )
    return sizes


def find_size(content: Content, *, sizes: Sizes, name: str) -> tuple[int, int]:
    """Which of the sizes a picture gets, by its header; where there is one alone, it is not even opened."""
    if len(sizes) == 1:
        return sizes[0]
    with opened(content, sizes=sizes, name=name) as picture:
        # A PNG's own `getexif` decodes it. TIFF's height and width are those of the turned picture already.
        turned = picture.format != "TIFF" and PILImage.Image.getexif(picture).get(0x0112) in TURNED
        width, height = reversed(picture.size) if turned else picture.size
    return nearest_size(height, width, sizes)


def read_picture(
    content: Content, *, sizes: Sizes, shape: Shape = "crop", name: str, size: tuple[int, int] | None = None
) -> Tensor:
    """A picture as uint8 (3, height, width): upright, on white, `framed` in one of the sizes, or in that which was
    found for it before.
    """
    with opened(content, sizes=sizes, name=name) as picture:
        shown = flat(picture)
    return Image.from_pil(framed(shown, (size,) if size else sizes, shape=shape)).pixels


@contextmanager
def opened(content: Content, *, sizes: Sizes, name: str) -> Iterator[PILImage.Image]:
    """A picture whose header is read; what goes wrong until it is closed is a BadDocument."""
    wanted = 2 * max(map(max, sizes))
    try:
        with PILImage.open(content if isinstance(content, Path) else io.BytesIO(content)) as picture:
            check_pixels(picture, name)
            # JPEG decodes at a fraction of its size where that leaves twice what we need: 4x faster for photographs.
            picture.draft("RGB", (wanted, wanted))
            yield picture
    except BadDocument:
        raise
    except (PILImage.DecompressionBombError, PILImage.DecompressionBombWarning) as error:
        say = f"the picture {name} is too large to decode safely ({error}); shrink it or remove it"
        raise BadDocument(say, cause="picture too large") from error
    except FileNotFoundError as error:
        raise BadDocument(f"there is no picture {name}; add it or remove what names it", cause="no picture") from error
    except Exception as error:  # a damaged file makes its decoder raise anything
        say = f"the picture {name} cannot be read ({error}); repair it or remove it"
        raise BadDocument(say, cause="broken picture") from error


def check_pixels(picture: PILImage.Image, name: str) -> None:
    """Refuse a picture of more pixels than PIL calls safe, before it is decoded (PIL only warns at first)."""
    most = PILImage.MAX_IMAGE_PIXELS or 0
    if picture.width * picture.height > most:
        say = f"{picture.width}x{picture.height} pixels, more than {most}"
        raise BadDocument(
            f"the picture {name} is too large to decode safely ({say}); shrink it or remove it",
            cause="picture too large",
        )


class PictureCache:
    """Pictures by row, as a source's configuration asks for them; remembers decoded ones, up to a number of bytes.

    Nothing is thrown out: over shuffled epochs a fixed share of hits beats a least-recently-used list, which would
    lose every picture just before it returns. The pixels are shared, so nobody may write into them.
    """

    def __init__(
        self, config: PicturesConfig, find: Callable[[int], tuple[Content, str]], *, limit: int = CACHE_BYTES
    ) -> None:
        """`find` gives the content of a row's picture, and its name in words."""
        self._config, self._find = config, find
        self._room = limit
        self._pixels: dict[int, Tensor] = {}
        self._sizes: dict[int, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def picture(self, row: int) -> Tensor:
        """uint8 (3, height, width)."""
        pixels = self._pixels.get(row)
        if pixels is None:
            content, name = self._find(row)
            sizes, size = sizes_of(self._config), self._sizes.get(row)
            pixels = read_picture(content, sizes=sizes, shape=self._config.shape, name=name, size=size)
            with self._lock:  # sources may have several readers
                if row not in self._pixels and pixels.numel() <= self._room:
                    self._room -= pixels.numel()
                    self._pixels[row] = pixels
        return pixels

    def later(self, row: int, *, mirrored: bool = False) -> Image:
        """The picture, to be read when it is needed; where all get the same size, nothing is read until then."""
        image = Image.of_size(self._size(row), later=partial(self.picture, row))
        return mirror(image) if mirrored else image

    def _size(self, row: int) -> tuple[int, int]:
        sizes = sizes_of(self._config)
        if len(sizes) == 1:
            return sizes[0]
        size = self._sizes.get(row)
        if size is None:
            content, name = self._find(row)
            size = self._sizes[row] = find_size(content, sizes=sizes, name=name)
        return size


def mirror(image: Image) -> Image:
    """Left and right exchanged, once the picture is read."""
    return replace(image, later=lambda: torch.flip(image.read().pixels, dims=(2,)))
