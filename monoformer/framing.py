"""Any picture in a size that a model has: the one way for training, use and evaluation.

Knows nothing of files or models. Invariant: a picture that already has one of the sizes stays as it is.
"""

import math

from PIL import Image as PILImage
from PIL import ImageOps

from monoformer.config.sources import Shape, Sizes

Method = PILImage.Resampling


def nearest_size(height: int, width: int, sizes: Sizes) -> tuple[int, int]:
    """The picture's own size, else that whose ratio of sides is nearest (by its logarithm); of equals the largest."""
    if (height, width) in sizes:
        return height, width
    ratio = math.log(height / width)
    return min(sizes, key=lambda size: (round(abs(math.log(size[0] / size[1]) - ratio), 6), -size[0] * size[1], size))


def framed(picture: PILImage.Image, sizes: Sizes, *, shape: Shape, method: Method = Method.LANCZOS) -> PILImage.Image:
    """The picture in the nearest of `sizes`, each (height, width): stretched for `resize`, else its centre cut out."""
    height, width = nearest_size(picture.height, picture.width, sizes)
    if picture.size == (width, height):
        return picture
    if shape == "resize":
        return picture.resize((width, height), method)
    return ImageOps.fit(picture, (width, height), method=method)
