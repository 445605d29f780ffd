"""/v1/images/generations and /v1/images/edits: pictures from words, and from pictures and words.

Streamed, each picture is `partial_image` events and a `completed` one, as in OpenAI's image interface; of several
pictures `index` says which. Invariant: a picture's `seed` draws it again.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Literal

from starlette.requests import Request as HTTPRequest

from monoformer.config.generate import GenerateConfig
from monoformer.document import Document, Image, Text
from monoformer.generate.editing import Edit
from monoformer.generate.session import Usage
from monoformer.serve.answers import Picture, PictureEvent, Pictures, PictureTally, PictureTokens
from monoformer.serve.connection import EventAnswer, line, watched, while_connected
from monoformer.serve.errors import ApiError
from monoformer.serve.forms import read_edit, start_of
from monoformer.serve.pictures import address, encode
from monoformer.serve.schemas import EditQuestion, ImageOutput, ImageQuestion
from monoformer.serve.service import Service, every, requests, size_of
from monoformer.serve.stream import Stream

Task = Literal["image_generation", "image_edit"]

FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    **EditQuestion.model_json_schema(),
                    "properties": {
                        "image": {"type": "string", "format": "binary", "description": "A picture to change."},
                        "mask": {
                            "type": "string",
                            "format": "binary",
                            "description": "Of the same size, transparent (if opaque, white) where it may change.",
                        },
                        **EditQuestion.model_json_schema()["properties"],
                    },
                    "required": ["image", "prompt"],
                }
            }
        },
    }
}
"""The form of an edit in the OpenAPI document."""


def add_images(routes: Any, service: Service) -> None:
    """The routes, and how they answer."""

    async def generate(question: ImageQuestion, request: HTTPRequest) -> Any:
        """Draw pictures.

        With `stream` the answer is server-sent events: `image_generation.partial_image`, `image_generation.completed`.
        """
        service.check(question, texts=[question.prompt, question.negative or ""], count=question.n)
        document = Document((Text(question.prompt, "user"),))
        return await answer(question, request, service, document, task="image_generation")

    routes.add_api_route(
        "/v1/images/generations",
        generate,
        methods=["POST"],
        response_model=Pictures,
        response_model_exclude_none=True,
        tags=["images"],
    )

    async def edit(request: HTTPRequest) -> Any:
        """Change a picture as the prompt says; with a `mask` only where that is transparent.

        With `stream` the answer is server-sent events: `image_edit.partial_image`, `image_edit.completed`.
        """
        question, pictures, mask = await read_edit(request, service)
        shown = await asyncio.to_thread(lambda: [service.pipeline.context_image(picture) for picture in pictures])
        start = start_of(
            shown[0], picture=pictures[0], mask=mask, strength=question.strength, pipeline=service.pipeline
        )
        document = Document((*shown, Text(question.prompt, "user")))
        return await answer(question, request, service, document, task="image_edit", start=start)

    routes.add_api_route(
        "/v1/images/edits",
        edit,
        methods=["POST"],
        response_model=Pictures,
        response_model_exclude_none=True,
        tags=["images"],
        openapi_extra=FORM,
    )


async def answer(
    question: ImageOutput,
    request: HTTPRequest,
    service: Service,
    document: Document,
    *,
    task: Task,
    start: Edit | None = None,
) -> Any:
    """Draw the pictures and send them, at once or while they come."""
    settings = service.settings(question, document, want="image")
    asked = requests(
        document,
        settings,
        count=question.n,
        want="image",
        size=size_of(question.size),
        edit=start,
        previews=every(question.partial_images, settings),
    )
    stream = await service.submit(*asked)
    output = Output(question, settings)
    if question.stream:
        return EventAnswer(output.lines(stream, service, task=task), stream=stream)
    return await while_connected(request, stream, output.gather(stream, service))


class Output:
    """Pictures as their events come, in the form that was asked for."""

    def __init__(self, question: ImageOutput, settings: GenerateConfig) -> None:
        """Of a question, with the settings of its first picture."""
        self.question, self.settings = question, settings
        self.created, self.size = int(time.time()), "auto"

    async def encode(self, image: Image) -> str:
        """A picture as a file in base64, off the event loop."""
        form, quality = self.question.output_format, self.question.output_compression
        height, width = image.pixels.shape[1:]
        self.size = f"{width}x{height}"
        return await asyncio.to_thread(partial(encode, image, form=form, quality=quality))

    async def gather(self, stream: Stream, service: Service) -> Pictures:
        """All pictures."""
        files, usages = [""] * self.question.n, [Usage()] * self.question.n
        async for event in watched(stream, service.meters):
            usages[event.session] = event.usage
            if event.kind == "image" and event.image is not None:
                files[event.session] = await self.encode(event.image)
        form = self.question.output_format
        as_url = self.question.response_format == "url"
        data = [
            Picture(
                b64_json=None if as_url else file,
                url=address(file, form=form) if as_url else None,
                seed=self.settings.seed + place,
            )
            for place, file in enumerate(files)
        ]
        return Pictures(created=self.created, data=data, size=self.size, output_format=form, usage=self.tally(usages))

    async def lines(self, stream: Stream, service: Service, *, task: Task) -> AsyncIterator[str]:
        """Previews and pictures as server-sent events."""
        previews = [0] * self.question.n
        files: dict[int, str] = {}
        try:
            async for event in watched(stream, service.meters):
                place = event.session
                if event.kind == "image" and event.image is not None:
                    files[place] = await self.encode(event.image)
                elif event.kind == "end":
                    more = {"seed": self.settings.seed + place, "usage": self.tally([event.usage])}
                    yield self.line(f"{task}.completed", files.pop(place), place, **more)
                elif event.image is not None and previews[place] < self.question.partial_images:
                    file, number = await self.encode(event.image), previews[place]
                    previews[place] += 1
                    more = {"partial_image_index": number, "step": event.step, "steps": event.steps}
                    yield self.line(f"{task}.partial_image", file, place, **more)
        except ApiError as error:
            yield error.line()

    def line(self, kind: str, file: str, place: int, **more: Any) -> str:
        """One event."""
        form = self.question.output_format
        fixed: dict[str, Any] = {"created_at": self.created, "size": self.size, "output_format": form}
        fixed |= {"background": "opaque", "quality": "auto"}
        return line(PictureEvent(type=kind, b64_json=file, index=place, **fixed, **more), event=kind)

    def tally(self, usages: list[Usage]) -> PictureTally:
        """Tokens; the prompt is counted once."""
        read, shown, drawn = usages[0].read, usages[0].shown, sum(usage.drawn for usage in usages)
        return PictureTally(
            input_tokens=read,
            output_tokens=drawn,
            total_tokens=read + drawn,
            input_tokens_details=PictureTokens(text_tokens=read - shown, image_tokens=shown),
        )
