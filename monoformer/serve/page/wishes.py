"""What a user asks for in the tabs, as requests.

Raises ValueError, in words for that user, for what cannot be asked. Knows nothing of Gradio.
"""

from collections.abc import Sequence
from typing import Any

from PIL import Image as PILImage

from monoformer.document import Document, Image, Text
from monoformer.generate.editing import Edit
from monoformer.generate.session import Request
from monoformer.serve.page.desk import Desk
from monoformer.serve.page.pictures import painted, shrunk


def wish_drawings(
    desk: Desk, prompt: str, *, count: int, size: str, seed: int, previews: int = 1, **settings: Any
) -> list[Request]:
    """`count` pictures of one prompt with the seeds from `seed` on; `size` as "height x width"."""
    if not prompt.strip():
        raise ValueError("the prompt is empty; say what is to be drawn")
    if not 1 <= count <= desk.limits.count:
        raise ValueError(f"between 1 and {desk.limits.count} pictures can be drawn at once, but {count} are asked for")
    _check_steps(desk, settings)
    document = Document((Text(prompt.strip(), "user"),))
    return [
        Request(
            document=document,
            want="image",
            size=read_size(size),
            settings=desk.settings(seed=seed + at, **settings),
            previews=previews,
        )
        for at in range(count)
    ]


def wish_edit(
    desk: Desk,
    picture: PILImage.Image | None,
    text: str,
    *,
    layers: Sequence[PILImage.Image] = (),
    describes: bool = False,
    strength: float = 1.0,
    **settings: Any,
) -> tuple[Image, Request]:
    """The picture as the model reads it, and what is to become of it.

    `text` is an instruction, read after the picture, or with `describes` a description of the new one, read alone.
    Where `layers` are painted, only that is drawn anew.
    """
    if picture is None:
        raise ValueError("there is no picture yet; send one, or draw one and press Edit")
    if not text.strip():
        raise ValueError("say what is to change")
    _check_steps(desk, settings)
    before, mask = read_picture(desk, picture), _mask(desk, painted(layers), picture)
    words = Text(text.strip(), "user")
    if describes and mask is None and strength == 1:
        raise ValueError("a description alone ignores the picture; paint what may change, or lower the strength")
    start = None
    if mask is not None or strength < 1:
        start = Edit(pixels=before.pixels, strength=strength, mask=mask)
    request = Request(
        document=Document((words,) if describes else (before, words)),
        want="image",
        edit=start,
        settings=desk.settings(**settings),
        previews=1,
    )
    return before, request


def read_picture(desk: Desk, picture: PILImage.Image) -> Image:
    """A user's picture as the model reads it; one that was enlarged for the page is first made small again."""
    if picture.width * picture.height > desk.limits.pixels:
        size = f"{picture.width}x{picture.height}"
        raise ValueError(f"the picture has {size} pixels, more than {desk.limits.pixels}; send a smaller one")
    return desk.pipeline.context_image(shrunk(picture, desk.sizes))


def write_size(size: tuple[int, int]) -> str:
    """A height and width for people."""
    return f"{size[0]} x {size[1]}"


def read_size(said: str) -> tuple[int, int]:
    """The height and width that `write_size` wrote."""
    try:
        height, width = (int(part) for part in said.split("x"))
    except ValueError:
        raise ValueError(f"a size is a height and a width, such as 64 x 64, but is {said!r}") from None
    return height, width


def _check_steps(desk: Desk, settings: dict[str, Any]) -> None:
    most = desk.limits.steps
    if not 1 <= settings.get("steps", 1) <= most:
        raise ValueError(f"between 1 and {most} steps can be taken, but {settings['steps']} are asked for")


def _mask(desk: Desk, mask: PILImage.Image | None, picture: PILImage.Image) -> Any:
    """The mask that was painted over a picture, on its pixels as the model reads it, bool (H, W)."""
    if mask is None:
        return None
    return desk.pipeline.context_mask(mask, shrunk(picture, desk.sizes), or_white=True)
