"""The multipart form of an edit: its fields, its pictures and its mask.

Knows nothing of engines. Invariant: files are read off the event loop, and only as many as the limits allow.
"""

import asyncio
import logging
from functools import partial
from typing import Any

from PIL import Image as PILImage
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from monoformer.document import Image
from monoformer.generate.editing import Edit
from monoformer.pipeline import Pipeline
from monoformer.serve.errors import ApiError, invalid, refusals
from monoformer.serve.pictures import decode
from monoformer.serve.schemas import EditQuestion
from monoformer.serve.service import Service

FILES = ("image", "image[]", "mask")

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # of a broken form its sender is told, not the log


async def read_edit(
    request: Request, service: Service
) -> tuple[EditQuestion, list[PILImage.Image], PILImage.Image | None]:
    """What is asked, the pictures, of which there is one at least, and the mask."""
    form = await open_form(request, service)
    try:
        question = read_form(form)
        service.check(question, texts=[question.prompt, question.negative or ""], count=question.n)
        files = [*form.getlist("image"), *form.getlist("image[]")]
        pictures = [await picture_of(file, service, parameter="image") for file in files]
        masks = [await picture_of(file, service, parameter="mask") for file in form.getlist("mask")]
    finally:
        await form.close()
    if not pictures:
        raise ApiError("an edit needs a picture; send the file as image", parameter="image")
    if len(masks) > 1 or ((masks or question.strength < 1) and len(pictures) > 1):
        raise ApiError("mask and strength are for one picture; send one image and one mask", parameter="mask")
    return question, pictures, masks[0] if masks else None


async def open_form(request: Request, service: Service) -> FormData:
    """The form that was sent."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise ApiError("an edit is sent as multipart/form-data", code="invalid_content_type")
    try:
        return await request.form(max_files=service.limits.images + 1, max_fields=64, max_part_size=2**20)
    except ApiError:
        raise
    except Exception as error:  # whatever the parser raises, the form is broken
        raise ApiError("the form could not be read", code="invalid_form") from error


def read_form(form: FormData) -> EditQuestion:
    """The fields of the form; what is text there is read as the number or switch that it stands for."""
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name in FILES:
            continue
        if isinstance(value, UploadFile) or name in fields:
            raise ApiError(f"the field {name[:100]!r} must be text, sent once", parameter=name[:100])
        fields[name] = value
    try:
        return EditQuestion.model_validate(fields, strict=False)
    except ValidationError as error:
        raise invalid(list(error.errors(include_url=False))) from error


async def picture_of(file: UploadFile | str, service: Service, *, parameter: str) -> PILImage.Image:
    """A picture of the form."""
    if isinstance(file, str):
        raise ApiError(f"{parameter} must be a file", parameter=parameter)
    data = await file.read()
    return await asyncio.to_thread(partial(decode, data, limits=service.limits, parameter=parameter))


def start_of(
    shown: Image, *, picture: PILImage.Image, mask: PILImage.Image | None, strength: float, pipeline: Pipeline
) -> Edit | None:
    """What the edit begins with: nothing of the picture, unless a mask or a strength says what stays of it."""
    if mask is None and strength == 1:
        return None
    drawn = None
    if mask is not None:
        if mask.size != picture.size:
            sizes = [f"{image.width}x{image.height}" for image in (mask, picture)]
            raise ApiError(f"the mask is {sizes[0]}, but the picture {sizes[1]}; make them alike", parameter="mask")
        transparency = "A" in mask.getbands() or "transparency" in mask.info
        drawn = pipeline.context_mask(mask, picture, or_white=not transparency)
    with refusals():
        return Edit(pixels=shown.pixels, strength=strength, mask=drawn)
