"""Picture files to uint8 pixels of a size that a run has, and a bounded memory of them.

Knows nothing of captions or documents. Invariant: the same bytes and size give the same pixels; whatever goes wrong is
a `BadDocument` that names the picture.
"""

import io
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image as PILImage
from torch import Tensor

from monoformer.config.data import PicturesConfig
from monoformer.config.sources import Shape, Sizes
from monoformer.data.skipped import BadDocument
from monoformer.document import Image, flat
from monoformer.framing import framed

CACHE_BYTES = 512 * 2**20
"""Most memory for decoded pictures: 43,690 of 64 x 64."""


def read_as(config: PicturesConfig, content: Path | bytes, *, name: str) -> Tensor:
    """A picture as a source's configuration asks for it: uint8 (3, height, width)."""
    size, buckets = config.size, config.buckets
    sizes = buckets if config.shape == "bucket" else ((size, size),)
    if not sizes or min(map(min, sizes)) < 1:
        raise ValueError(
            f"data.shape is {config.shape!r}, but data.size is {size} and data.buckets {buckets}; give a size"
        )
    return read_picture(content, sizes=sizes, shape=config.shape, name=name)


def read_picture(content: Path | bytes, *, sizes: Sizes, shape: Shape = "crop", name: str) -> Tensor:
    """A picture as uint8 (3, height, width): upright, on white, `framed` in one of the sizes."""
    wanted = 2 * max(map(max, sizes))
    try:
        with PILImage.open(content if isinstance(content, Path) else io.BytesIO(content)) as picture:
            check_pixels(picture, name)
            # JPEG decodes at a fraction of its size where that leaves twice what we need: 4x faster for photographs.
            picture.draft("RGB", (wanted, wanted))
            shown = flat(picture)
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
    return Image.from_pil(framed(shown, sizes, shape=shape)).pixels


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
    """Remembers decoded pictures by row, up to a number of bytes.

    Nothing is thrown out: over shuffled epochs a fixed share of hits beats a least-recently-used list, which would
    lose every picture just before it returns. The pixels are shared, so nobody may write into them.
    """

    def __init__(self, read: Callable[[int], Tensor], *, limit: int = CACHE_BYTES) -> None:
        self._read = read
        self._room = limit
        self._pixels: dict[int, Tensor] = {}
        self._lock = threading.Lock()

    def picture(self, row: int) -> Tensor:
        """uint8 (3, height, width)."""
        pixels = self._pixels.get(row)
        if pixels is None:
            pixels = self._read(row)
            with self._lock:  # sources may have several readers
                if row not in self._pixels and pixels.numel() <= self._room:
                    self._room -= pixels.numel()
                    self._pixels[row] = pixels
        return pixels


def mirror(pixels: Tensor) -> Tensor:
    """Left and right exchanged."""
    return torch.flip(pixels, dims=(2,))
