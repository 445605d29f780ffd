"""/v1/completions: plain texts, continued."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request as HTTPRequest

from monoformer.config.generate import GenerateConfig
from monoformer.document import Document, Text
from monoformer.generate.session import Event, Request, Usage
from monoformer.generate.text import Score
from monoformer.serve.answers import Completion, Finish, Written
from monoformer.serve.chat import head, tally
from monoformer.serve.connection import DONE, EventAnswer, line, watched, while_connected
from monoformer.serve.errors import ApiError
from monoformer.serve.schemas import TextQuestion
from monoformer.serve.scores import text_scores
from monoformer.serve.service import Service, requests
from monoformer.serve.stream import Stream


def add_completions(routes: Any, service: Service) -> None:
    """The route, and how it answers."""

    async def complete(question: TextQuestion, request: HTTPRequest) -> Any:
        """Continue plain texts. Choice `i` continues prompt `i // n`.

        With `stream` the answer is server-sent events of the same form; `[DONE]` is the last one.
        """
        prompts = question.prompts
        typed = [prompt for prompt in prompts if isinstance(prompt, str)]
        service.check(question, texts=typed, count=question.n * len(prompts))
        settings = service.settings(question)
        asked = [one for prompt in prompts for one in asked_of(question, prompt, settings)]
        stream = await service.submit(*asked)
        bos = service.pipeline.pretrained.tokenizer.bos if question.echo else -1
        texts = [Continued.of(place, prompts[place // question.n], bos=bos) for place in range(len(asked))]
        if question.stream:
            return EventAnswer(streamed(question, service, stream, texts), stream=stream)
        return await while_connected(request, stream, gathered(question, service, stream, texts))

    routes.add_api_route("/v1/completions", complete, methods=["POST"], response_model=Completion, tags=["text"])


def asked_of(question: TextQuestion, prompt: str | list[int], settings: GenerateConfig) -> list[Request]:
    """The engine's requests for one prompt. What is echoed is an event where its tokens are told or read."""
    told = question.echo and (question.logprobs is not None or not isinstance(prompt, str))
    return requests(
        Document((Text(prompt),) if isinstance(prompt, str) else ()),
        settings,
        count=question.n,
        want="text",
        tokens=() if isinstance(prompt, str) else tuple(prompt),
        log_probabilities=0 if told and question.logprobs is None else question.logprobs,
        prompt_log_probabilities=told,
    )


@dataclass
class Continued:
    """One text as its events come."""

    index: int
    prompt: str
    """Its text; of token ids it comes with the first event."""
    scores: list[Score] = field(default_factory=list)
    text: str = ""
    finish: Finish | None = None
    usage: Usage = field(default_factory=Usage)

    @classmethod
    def of(cls, index: int, prompt: str | list[int], *, bos: int) -> "Continued":
        """The text that goes on with a prompt; a `bos` that it begins with is the first of what is told."""
        if isinstance(prompt, str):
            return cls(index, prompt)
        return cls(index, "", [Score(bos, 0.0)] if prompt[0] == bos else [])

    def take(self, event: Event) -> None:
        """Note what is new."""
        if event.kind == "prompt":
            self.prompt = self.prompt or event.text
        else:
            self.text += event.text
        self.scores += event.scores
        if event.kind == "end":
            self.finish, self.usage = "length" if event.reason == "length" else "stop", event.usage


async def streamed(
    question: TextQuestion, service: Service, stream: Stream, texts: list[Continued]
) -> AsyncIterator[str]:
    """The events of an answer, as lines."""
    fixed = head("cmpl", "text_completion", service.name)
    words, prompts = service.batcher.words, len(texts) // question.n

    def chunk(own: Continued, text: str, **more: Any) -> str:
        return line(Completion(**fixed, choices=[Written(index=own.index, text=text, **more)]))

    scored = question.logprobs is not None
    if question.echo and not scored:
        for own in texts:
            if own.prompt:
                yield chunk(own, own.prompt)
    try:
        async for event in watched(stream, service.meters):
            own = texts[event.session]
            offset = len(own.text) + question.echo * len(own.prompt)
            own.take(event)
            if event.kind == "prompt":
                scores = text_scores(own.scores, words, offset=0, prompt=own.prompt) if scored else None
                yield chunk(own, own.prompt, logprobs=scores)
                continue
            scores = text_scores(event.scores, words, offset=offset) if event.scores and scored else None
            yield chunk(own, event.text, logprobs=scores, finish_reason=own.finish)
    except ApiError as error:
        yield error.line()
        return
    if question.stream_options is not None and question.stream_options.include_usage:
        yield line(Completion(**fixed, choices=[], usage=tally([own.usage for own in texts], prompts=prompts)))
    yield DONE


async def gathered(question: TextQuestion, service: Service, stream: Stream, texts: list[Continued]) -> Completion:
    """The whole answer."""
    async for event in watched(stream, service.meters):
        texts[event.session].take(event)
    words, scored = service.batcher.words, question.logprobs is not None
    return Completion(
        **head("cmpl", "text_completion", service.name),
        choices=[
            Written(
                index=own.index,
                text=own.prompt * question.echo + own.text,
                logprobs=text_scores(own.scores, words, offset=0, prompt=own.prompt if question.echo else None)
                if scored
                else None,
                finish_reason=own.finish,
            )
            for own in texts
        ],
        usage=tally([own.usage for own in texts], prompts=len(texts) // question.n),
    )
