"""Pictures on their way in and out: bytes, data: addresses, PIL.

Knows nothing of models. Invariant: a picture's size is looked at before its pixels are decoded, and only the plain
formats are tried.
"""

import base64
import binascii
import io
from typing import Literal

from PIL import Image as PILImage

from monoformer.config.serve import Limits
from monoformer.document import Image, upright
from monoformer.serve.errors import ApiError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
"""What is accepted."""

Format = Literal["png", "jpeg", "webp"]


def decode(data: bytes, *, limits: Limits, parameter: str) -> PILImage.Image:
    """A picture from the bytes of a file, its first frame. Raises ApiError naming the field `parameter`."""
    try:
        with PILImage.open(io.BytesIO(data), formats=FORMATS) as opened:
            if opened.width * opened.height > limits.pixels:
                raise PILImage.DecompressionBombError
            opened.load()
            return upright(opened)
    except (PILImage.DecompressionBombError, PILImage.DecompressionBombWarning) as error:  # PIL's own limit is larger
        raise ApiError(
            f"the picture has more than the {limits.pixels} pixels that are accepted",
            parameter=parameter,
            code="image_too_large",
        ) from error
    except Exception as error:  # what damaged files raise is as various as the formats
        raise ApiError(
            f"this is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture that can be read",
            parameter=parameter,
            code="invalid_image",
        ) from error


def from_address(url: str, *, limits: Limits, parameter: str) -> PILImage.Image:
    """A picture from a data: address."""
    head, comma, body = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise ApiError(
            "a picture's address must be data:image/...;base64,...", parameter=parameter, code="invalid_image_url"
        )
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError("the picture's base64 is broken", parameter=parameter, code="invalid_base64") from error
    return decode(data, limits=limits, parameter=parameter)


def encode(image: Image, *, form: Format = "png", quality: int = 100) -> str:
    """The picture as a file in base64."""
    out = io.BytesIO()
    if form == "png":
        image.to_pil().save(out, "PNG")
    else:
        image.to_pil().save(out, form.upper(), quality=quality)
    return base64.b64encode(out.getvalue()).decode("ascii")


def address(encoded: str, *, form: Format = "png") -> str:
    """The data: address of a picture in base64."""
    return f"data:image/{form};base64,{encoded}"
