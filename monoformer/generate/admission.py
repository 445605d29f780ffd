"""Requests become sessions, or are refused at once: nothing that was let in fails for what could be known before."""

from collections.abc import Sequence
from dataclasses import replace

from monoformer.batch import Layout
from monoformer.config.generate import check_sampler
from monoformer.document import Document, Text
from monoformer.generate.guidance import check_channels, most_nulls, null_documents
from monoformer.generate.network import Network
from monoformer.generate.session import RefusedRequestsError, Request, Session
from monoformer.generate.textstream import TextStream
from monoformer.generate.writing import Writer
from monoformer.randomness import generator
from monoformer.sequence import Sequencer

TOO_LONG = "too many for the model's context"
"""In every message about a prompt that does not fit, for clients that shorten it themselves."""


class Admission:
    """What opens sessions for one network; by one thread at a time, since a tokenizer has state."""

    def __init__(self, network: Network, sequencer: Sequencer) -> None:
        self.network, self.sequencer = network, sequencer
        self.writer = Writer(network, sequencer)
        self._last: tuple[Request, Layout] | None = None

    def beside(self) -> "Admission":
        """The same for another thread, with a tokenizer of its own."""
        tokenizer = self.sequencer.tokenizer.beside()
        return Admission(self.network, replace(self.sequencer, tokenizer=tokenizer))

    def open_all(self, requests: Sequence[Request]) -> list[Session]:
        """The sessions of all requests. Raises RefusedRequestsError where one cannot be served."""
        sessions, errors = [], []
        for request in requests:
            try:
                sessions.append(self.open(request))
                errors.append("")
            except ValueError as error:
                errors.append(str(error))
        if any(errors):
            raise RefusedRequestsError(errors)
        return sessions

    def open(self, request: Request) -> Session:
        """The session of a request. Raises ValueError for one that cannot be served."""
        settings, sequencer, opens = request.settings, self.sequencer, request.want == "image"
        self._check(request)
        layout = self._layout(request)
        request = replace(request, document=request.document.with_own_targets())
        self._check_room(request, layout)
        layouts = [layout]
        if opens or (request.want == "any" and settings.negative):  # else what is compared is no longer than the prompt
            compared = null_layouts(request, request.document, network=self.network, sequencer=sequencer)
            layouts += compared if opens else []
        stream = TextStream(settings.stop, self.sequencer.tokenizer.decode)
        return Session(request, layouts, generator(settings.seed, "text"), stream, opens=opens)

    def _layout(self, request: Request) -> Layout:
        """The prompt's; of several requests of one prompt, which follow each other, it is made once."""
        document, tokens, opens = request.document, request.tokens, request.want == "image"
        if self._last is not None:
            before, layout = self._last
            if before.document is document and before.tokens is tokens and (before.want == "image") == opens:
                return layout
        if tokens:
            self._check_tokens(tokens)
            layout = self.sequencer.tokens(tokens)
        else:
            self._check_length([segment.text for segment in document.segments if isinstance(segment, Text)])
            layout = self.sequencer.prompt(document.with_own_targets(), opening="image" if opens else None)
        self._last = (request, layout)
        return layout

    def _check(self, request: Request) -> None:
        """What can be known without laying the prompt out."""
        config, settings = self.network.model.config, request.settings
        self._check_length([settings.negative])
        if request.want != "text":
            request.picture_size(request.document, config)
            check_sampler(settings, self.network.objective.config)
            check_channels(settings, config)
        self.writer.check(request)
        needed, slots = 1 + nulls(request), self.network.cache.keys.shape[1]
        if needed > slots:
            raise ValueError(f"this guidance needs {needed} contexts at once, but the engine has {slots} slots")

    def _check_length(self, texts: Sequence[str]) -> None:
        """Refuse texts that cannot fit before they are laid out, which takes far longer than to count their tokens."""
        context, tokenizer = self.network.model.config.context, self.sequencer.tokenizer
        characters, tokens = sum(map(len, texts)), 0
        if characters <= context:
            return
        if characters <= context * tokenizer.longest:
            tokens = sum(len(tokenizer.encode(text)) for text in texts)
        if not tokens or tokens > context:
            count = f"{tokens} tokens" if tokens else f"{characters} characters"
            raise ValueError(f"the prompt has {count}, {TOO_LONG} of {context} tokens; shorten it")

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        """Refuse ids that stand for no text, and more than fit."""
        own, context = self.sequencer.tokenizer, self.network.model.config.context
        wrong = [t for t in tokens if not 0 <= t < own.size or t in (own.boi, own.eoi, own.patch, own.time)]
        if wrong:
            raise ValueError(f"the prompt names token {wrong[0]}, which stands for no text; give ids of the tokenizer")
        if len(tokens) > context:
            raise ValueError(f"the prompt has {len(tokens)} tokens, {TOO_LONG} of {context}")

    def _check_room(self, request: Request, layout: Layout) -> None:
        """Whether the prompt, the picture and the longest answer fit the context."""
        context, picture = self.network.model.config.context, 0
        if request.want == "image":
            picture = picture_tokens(request, request.document, network=self.network, sequencer=self.sequencer)
        answer = self.writer.longest_answer(request)
        if len(layout) + picture + max(1, answer - 1) > context:
            longer = f" and a picture of {picture}" if picture else f" and an answer of {answer}" if answer else ""
            raise ValueError(f"the prompt has {len(layout)} tokens, {TOO_LONG} of {context}{longer}; shorten it")


def picture_tokens(request: Request, document: Document, *, network: Network, sequencer: Sequencer) -> int:
    """Tokens of a picture drawn after `document`, with its time token."""
    height, width = sequencer.grid(*request.picture_size(document, network.model.config))
    return height * width + sequencer.time_token


def null_layouts(request: Request, document: Document, *, network: Network, sequencer: Sequencer) -> list[Layout]:
    """What guidance compares a picture after `document` with. Raises ValueError where there is no room for the picture
    behind it, as behind a long negative text.
    """
    documents = null_documents(document, request.settings)
    layouts = [sequencer.prompt(document, opening="image") for document in documents]
    picture = picture_tokens(request, document, network=network, sequencer=sequencer)
    longest, context = max(map(len, layouts), default=0), network.model.config.context
    if longest + picture > context:
        raise ValueError(
            f"what guidance compares with has {longest} tokens, {TOO_LONG} of {context} and a "
            f"picture of {picture}; shorten the negative text"
        )
    return layouts


def nulls(request: Request) -> int:
    """The most contexts that guidance compares a picture with at once."""
    if request.want == "text":
        return 0
    return most_nulls(request.settings, images_may_come=request.want == "any", document=request.document)
