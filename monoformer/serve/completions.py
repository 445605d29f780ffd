"""/v1/completions: plain texts, continued."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request as HTTPRequest

from monoformer.document import Document, Text
from monoformer.generate.session import Event, Usage
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
        prompts = [question.prompt] if isinstance(question.prompt, str) else question.prompt
        service.check(question, texts=prompts, count=question.n * len(prompts))
        settings = service.settings(question)
        asked = [
            one
            for prompt in prompts
            for one in requests(
                Document((Text(prompt),)), settings, count=question.n, want="text", log_probabilities=question.logprobs
            )
        ]
        stream = await service.submit(*asked)
        texts = [Continued(place, prompts[place // question.n]) for place in range(len(asked))]
        if question.stream:
            return EventAnswer(streamed(question, service, stream, texts), stream=stream)
        return await while_connected(request, stream, gathered(question, service, stream, texts))

    routes.add_api_route("/v1/completions", complete, methods=["POST"], response_model=Completion, tags=["text"])


@dataclass
class Continued:
    """One text as its events come."""

    index: int
    prompt: str
    text: str = ""
    scores: list[Score] = field(default_factory=list)
    finish: Finish | None = None
    usage: Usage = field(default_factory=Usage)

    def take(self, event: Event) -> None:
        """Note what is new."""
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

    if question.echo:
        for own in texts:
            yield chunk(own, own.prompt)
    try:
        async for event in watched(stream, service.meters):
            own = texts[event.session]
            offset = len(own.text) + question.echo * len(own.prompt)
            own.take(event)
            scores = text_scores(event.scores, words, offset=offset) if event.scores else None
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
                logprobs=text_scores(own.scores, words, offset=question.echo * len(own.prompt)) if scored else None,
                finish_reason=own.finish,
            )
            for own in texts
        ],
        usage=tally([own.usage for own in texts], prompts=len(texts) // question.n),
    )
