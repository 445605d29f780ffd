"""Pictures as the page needs them: PNG files that carry their settings, data URIs, enlarged and shrunk, masks.

Knows nothing of models or of Gradio.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image as PILImage
from PIL import ImageChops, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from monoformer.document import Image, upright

KEY = "monoformer"
"""The text chunk of a PNG file that holds the settings, as JSON."""

LARGEST = 32_000_000
"""Most pixels of a picture that is opened: a small file can unpack to gigabytes."""

TILES = '<div class="mf-tiles">'
"""How the HTML of `tiles` begins."""

SHOWN = 512
"""Pixels of the longer side to which a small picture is enlarged for the brush."""


def png_bytes(picture: PILImage.Image, settings: Mapping[str, Any] | None = None) -> bytes:
    """A PNG file; with `settings` in its text chunk."""
    info = PngInfo()
    if settings:
        info.add_text(KEY, json.dumps(dict(settings), ensure_ascii=True))
    file = io.BytesIO()
    picture.save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def open_picture(path: str | Path) -> PILImage.Image:
    """A picture that a user sent. Raises ValueError when it is none, or too large to unpack."""
    try:
        with PILImage.open(path) as picture:
            if picture.width * picture.height > LARGEST:
                raise ValueError(
                    f"the picture has {picture.width}x{picture.height} pixels, more than {LARGEST // 1_000_000} "
                    f"million; send a smaller one"
                )
            picture.load()
            return upright(picture)
    except (UnidentifiedImageError, OSError, SyntaxError, PILImage.DecompressionBombError) as error:
        raise ValueError("the file cannot be read as a picture; send a PNG, JPEG or WebP file") from error


def data_uri(picture: PILImage.Image) -> str:
    """The picture as text that a page can show by itself."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(picture)).decode("ascii")


def enlarged(picture: PILImage.Image, *, side: int = SHOWN) -> PILImage.Image:
    """A small picture with every pixel a square, so that its longer side is near `side`; others as they are."""
    factor = side // max(picture.size)
    if factor < 2:
        return picture
    return picture.resize((picture.width * factor, picture.height * factor), PILImage.Resampling.NEAREST)


def shrunk(picture: PILImage.Image, sizes: Sequence[tuple[int, int]]) -> PILImage.Image:
    """The picture that `enlarged` made this one from, where it is one of `sizes` (height, width); else as it is."""
    flat = picture.convert("RGB")
    for height, width in sizes:
        factor = flat.width // width
        if factor > 1 and flat.size == (width * factor, height * factor):
            small = flat.resize((width, height), PILImage.Resampling.NEAREST)
            again = small.resize(flat.size, PILImage.Resampling.NEAREST)
            if ImageChops.difference(flat, again).getbbox() is None:
                return small
    return picture


def painted(layers: Sequence[PILImage.Image]) -> PILImage.Image | None:
    """White where a brush went in any layer, black elsewhere; None where nothing is painted."""
    mask: PILImage.Image | None = None
    for layer in layers:
        alpha = layer.convert("RGBA").getchannel("A").point(lambda value: 255 if value > 127 else 0)
        mask = alpha if mask is None else ImageChops.lighter(mask, alpha)
    return mask if mask is not None and mask.getbbox() else None


def tiles(pictures: Sequence[Image | None], captions: Sequence[str], *, share: Sequence[float] | None = None) -> str:
    """HTML: pictures side by side with their captions; under each a bar filled to its `share`, if shares are given.

    None is a picture of which nothing can be seen yet.
    """
    found = []
    for at, (image, caption) in enumerate(zip(pictures, captions, strict=True)):
        shown = (
            f'<img alt="" src="{data_uri(image.to_pil())}">' if image is not None else '<div class="mf-empty"></div>'
        )
        bar = f'<div class="mf-bar"><i style="width:{100 * share[at]:.0f}%"></i></div>' if share is not None else ""
        found.append(f'<figure class="mf-tile">{shown}{bar}<figcaption>{escape(caption)}</figcaption></figure>')
    return f"{TILES}{''.join(found)}</div>"
