"""/v1/chat/completions: talks in words and pictures.

A streamed answer is deltas in the order in which they are made: `content` for words, `image_progress` while a picture
is drawn, `images` when it is done, and words again. Invariant: what a stream sends, put together, is the message that
would have been answered at once.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from starlette.requests import Request as HTTPRequest

from monoformer.document import Document, Role, Segment, Text
from monoformer.generate.session import Event, Request, Usage, Wanted
from monoformer.generate.text import Score
from monoformer.serve.answers import Chat, Choice, Chunk, ChunkChoice, Delta, Finish, Progress, Said, Scores, Tally
from monoformer.serve.connection import DONE, EventAnswer, line, watched, while_connected
from monoformer.serve.errors import ApiError
from monoformer.serve.pictures import address, encode
from monoformer.serve.schemas import ChatQuestion, DrawnPart, ImageAddress, ImagePart, Message, Part, TextPart
from monoformer.serve.scores import chat_scores
from monoformer.serve.service import Service, every, requests, size_of
from monoformer.serve.stream import Stream


def add_chat(routes: Any, service: Service) -> None:
    """The route, and how it answers."""

    async def chat(question: ChatQuestion, request: HTTPRequest) -> Any:
        """Go on with a talk, in words or pictures as the model decides.

        With `stream` the answer is server-sent events, each a `chat.completion.chunk`; `[DONE]` is the last one.
        """
        asked = await read(question, service)
        stream = await service.submit(*asked)
        seed = asked[0].settings.seed
        if question.stream:
            return EventAnswer(streamed(question, service, stream), stream=stream)
        return await while_connected(request, stream, gathered(question, service, stream, seed))

    routes.add_api_route(
        "/v1/chat/completions",
        chat,
        methods=["POST"],
        response_model=Chat,
        response_model_exclude_unset=True,
        tags=["chat"],
    )


async def read(question: ChatQuestion, service: Service) -> list[Request]:
    """The engine's requests. Raises ApiError for what cannot be served."""
    if question.logprobs is False and question.top_logprobs is not None:
        raise ApiError("top_logprobs has no effect without logprobs", parameter="top_logprobs")
    if question.max_completion_tokens is not None:
        if question.max_tokens not in (None, question.max_completion_tokens):
            message = "max_tokens and max_completion_tokens are two names of one setting; give one of them"
            raise ApiError(message, parameter="max_completion_tokens")
        question.max_tokens = question.max_completion_tokens
    if len(question.messages) > service.limits.messages:
        raise ApiError(f"a talk may have at most {service.limits.messages} messages here", parameter="messages")
    parts = [(number, message, part) for number, message in enumerate(question.messages) for part in parts_of(message)]
    texts = [part.text for _, _, part in parts if isinstance(part, TextPart)]
    service.check(question, texts=[*texts, question.negative or ""], count=question.n)
    if len(parts) - len(texts) > service.limits.images:
        raise ApiError(f"a request may show at most {service.limits.images} pictures here", parameter="messages")
    segments = [await segment(part, message, service, number=number) for number, message, part in parts]
    modalities = {*(question.modalities or ("text", "image"))}
    want: Wanted = "any" if len(modalities) == 2 else "image" if "image" in modalities else "text"
    if want == "image" and question.logprobs:
        raise ApiError("logprobs has no effect where only a picture is wanted", parameter="logprobs")
    if want == "text" and (question.partial_images or question.size):
        raise ApiError("partial_images and size have no effect where only text is wanted", parameter="modalities")
    document = Document(tuple(segments))
    settings = service.settings(question, document, want=want)
    return requests(
        document,
        settings,
        count=question.n,
        want=want,
        size=size_of(question.size),
        previews=every(question.partial_images, settings),
        log_probabilities=(question.top_logprobs or 0) if question.logprobs else None,
    )


def parts_of(message: Message) -> list[Part]:
    """Words and pictures of a message in reading order; there is one at least."""
    content = message.content
    parts: list[Part] = [TextPart(type="text", text=content)] if isinstance(content, str) else [*(content or [])]
    if message.images:
        if not isinstance(content, str | None):
            raise ApiError("a message with images has its words as a string", parameter="messages")
        text, parts, at = content or "", [], 0
        for image in sorted(message.images, key=lambda image: image.offset):
            parts += [TextPart(type="text", text=text[at : image.offset]), image]
            at = max(at, image.offset)
        parts.append(TextPart(type="text", text=text[at:]))
    return [p for p in parts if not isinstance(p, TextPart) or p.text] or [TextPart(type="text", text="")]


async def segment(part: Part, message: Message, service: Service, *, number: int) -> Segment:
    """A part of message `number` as the model reads it: pictures in the nearest size that it knows."""
    role: Role = "system" if message.role == "developer" else message.role
    if isinstance(part, TextPart):
        return Text(part.text, role)
    place = f"messages.{number}"
    if role == "system":
        raise ApiError("a system message has no pictures", parameter=place)
    picture = await service.picture(part.image_url.url, parameter=place)
    return replace(await asyncio.to_thread(service.pipeline.context_image, picture), role=role)


@dataclass
class Turn:
    """One answer as its events come."""

    index: int
    text: str = ""
    images: list[DrawnPart] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    finish: Finish | None = None
    usage: Usage = field(default_factory=Usage)
    previews: int = 0

    async def take(self, event: Event, *, previews: int = 0) -> Delta | None:
        """What is new for the client, at most so many previews of each picture; pictures are encoded off the loop."""
        match event.kind:
            case "text":
                self.text += event.text
                self.scores += event.scores
                return Delta(content=event.text)
            case "progress":
                progress = Progress(index=len(self.images), step=event.step, steps=event.steps)
                if event.image is not None and self.previews < previews:
                    self.previews += 1
                    url = address(await asyncio.to_thread(encode, event.image))
                    progress.image = ImagePart(type="image_url", image_url=ImageAddress(url=url))
                return Delta(image_progress=progress)
            case "image":
                assert event.image is not None
                shown = ImageAddress(url=address(await asyncio.to_thread(encode, event.image)))
                place, offset = len(self.images), len(self.text)
                self.images.append(DrawnPart(type="image_url", image_url=shown, index=place, offset=offset))
                self.previews = 0
                return Delta(images=self.images[-1:])
            case "end":
                self.finish, self.usage = "length" if event.reason == "length" else "stop", event.usage
        return None


async def streamed(question: ChatQuestion, service: Service, stream: Stream) -> AsyncIterator[str]:
    """The events of an answer, as lines."""
    fixed = head("chatcmpl", "chat.completion.chunk", service.name)
    turns = [Turn(index) for index in range(question.n)]

    def chunk(turn: Turn, delta: Delta, scores: Scores | None = None, *, finish: Finish | None = None) -> str:
        choice = ChunkChoice(index=turn.index, delta=delta, logprobs=scores, finish_reason=finish)
        return line(Chunk(**fixed, choices=[choice]))

    for turn in turns:
        yield chunk(turn, Delta(role="assistant", content=""))
    try:
        async for event in watched(stream, service.meters):
            turn = turns[event.session]
            delta = await turn.take(event, previews=question.partial_images)
            if delta is not None:
                scores = chat_scores(event.scores, service.batcher.words) if event.scores else None
                yield chunk(turn, delta, scores)
            elif turn.finish is not None:
                yield chunk(turn, Delta(), finish=turn.finish)
    except ApiError as error:
        yield error.line()
        return
    if question.stream_options is not None and question.stream_options.include_usage:
        yield line(Chunk(**fixed, choices=[], usage=tally([turn.usage for turn in turns])))
    yield DONE


async def gathered(question: ChatQuestion, service: Service, stream: Stream, seed: int) -> Chat:
    """The whole answer."""
    turns = [Turn(index) for index in range(question.n)]
    async for event in watched(stream, service.meters):
        await turns[event.session].take(event)
    return Chat(
        **head("chatcmpl", "chat.completion", service.name),
        choices=[
            Choice(
                index=turn.index,
                message=Said(role="assistant", content=turn.text, images=turn.images or None, refusal=None),
                logprobs=chat_scores(turn.scores, service.batcher.words) if question.logprobs else None,
                finish_reason=turn.finish or "stop",
            )
            for turn in turns
        ],
        usage=tally([turn.usage for turn in turns]),
        seed=seed,
    )


def head(prefix: str, kind: str, model: str) -> dict[str, Any]:
    """What every answer and every event of one begins with."""
    return {"id": f"{prefix}-{uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def tally(usages: list[Usage], *, prompts: int = 1) -> Tally:
    """Tokens of a request: each of its prompts is counted once, however many answers it has."""
    each = len(usages) // prompts
    read = sum(usage.read for usage in usages[::each])
    drawn = sum(usage.drawn for usage in usages)
    made = drawn + sum(usage.written for usage in usages)
    return Tally(prompt_tokens=read, completion_tokens=made, total_tokens=read + made, image_tokens=drawn)
