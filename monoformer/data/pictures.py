"""Picture files to uint8 pixels of a size that a run has, and a bounded memory of them.

Knows nothing of captions or documents. Invariant: the same bytes and size give the same pixels; whatever goes wrong is
a `BadDocument` that names the picture.
"""

import io
import math
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image as PILImage
from PIL import ImageOps
from torch import Tensor

from monoformer.config.data import PicturesConfig
from monoformer.config.sources import Shape, Sizes
from monoformer.data.skipped import BadDocument
from monoformer.document import Image

CACHE_BYTES = 512 * 2**20
"""Most memory for decoded pictures: 43,690 of 64 x 64."""


def read_as(config: PicturesConfig, content: Path | bytes, *, name: str) -> Tensor:
    """A picture as a source's configuration asks for it: uint8 (3, height, width)."""
    return read_picture(content, size=config.size, shape=config.shape, buckets=config.buckets, name=name)


def read_picture(
    content: Path | bytes, *, name: str, size: int = 0, shape: Shape = "crop", buckets: Sizes = ()
) -> Tensor:
    """A picture as uint8 (3, height, width): upright, on white, `size` on both sides or one of `buckets`."""
    sizes = buckets if shape == "bucket" else ((size, size),)
    if not sizes or min(map(min, sizes)) < 1:
        raise ValueError(f"data.shape is {shape!r}, but data.size is {size} and data.buckets {buckets}; give a size")
    wanted = 2 * max(map(max, sizes))
    try:
        with PILImage.open(content if isinstance(content, Path) else io.BytesIO(content)) as picture:
            check_pixels(picture, name)
            # JPEG decodes at a fraction of its size where that leaves twice what we need: 4x faster for photographs.
            picture.draft("RGB", (wanted, wanted))
            upright = ImageOps.exif_transpose(picture)
            assert upright is not None
            flat = _flatten(upright)
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
    height, width = nearest_size(flat.height, flat.width, sizes)
    if shape == "resize":
        fitted = flat.resize((width, height), PILImage.Resampling.LANCZOS)
    else:
        fitted = ImageOps.fit(flat, (width, height), method=PILImage.Resampling.LANCZOS)
    return Image.from_pil(fitted).pixels


def nearest_size(height: int, width: int, sizes: Sizes) -> tuple[int, int]:
    """The size whose ratio of sides is nearest (by its logarithm); of equals the largest."""
    ratio = math.log(height / width)
    return min(sizes, key=lambda size: (round(abs(math.log(size[0] / size[1]) - ratio), 6), -size[0] * size[1], size))


def check_pixels(picture: PILImage.Image, name: str) -> None:
    """Refuse a picture of more pixels than PIL calls safe, before it is decoded (PIL only warns at first)."""
    most = PILImage.MAX_IMAGE_PIXELS or 0
    if picture.width * picture.height > most:
        say = f"{picture.width}x{picture.height} pixels, more than {most}"
        raise BadDocument(
            f"the picture {name} is too large to decode safely ({say}); shrink it or remove it",
            cause="picture too large",
        )


def _flatten(picture: PILImage.Image) -> PILImage.Image:
    """RGB on white: palettes and transparency cannot be resized smoothly."""
    if picture.mode.startswith("I"):
        # 16-bit grey: PIL's own conversion clips at 255, which turns nearly everything white.
        picture = picture.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert("RGB") if picture.mode == "RGB" else Image.from_pil(picture).to_pil()


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
