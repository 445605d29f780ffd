"""Requests become sessions, or are refused at once: nothing that was let in fails for what could be known before."""

from dataclasses import replace

from monoformer.config.generate import check_sampler
from monoformer.document import Document
from monoformer.generate.guidance import check_channels, most_nulls, null_documents
from monoformer.generate.passes import Network
from monoformer.generate.session import Request, Session
from monoformer.generate.text import TextStream
from monoformer.generate.writing import Writer
from monoformer.randomness import generator
from monoformer.sequence import Sequencer


def open_session(number: int, request: Request, *, network: Network, sequencer: Sequencer, writer: Writer) -> Session:
    """The session of a request. Raises ValueError for one that cannot be served."""
    config, settings, opens = network.model.config, request.settings, request.want == "image"
    if request.want != "text":
        request.picture_size(request.document, config)
        check_sampler(settings, network.objective.config)
        check_channels(settings, config)
    writer.check(request)
    request = replace(request, document=request.document.with_own_targets())
    layout = sequencer.prompt(request.document, opening="image" if opens else None)
    picture = picture_tokens(request, request.document, network=network, sequencer=sequencer) if opens else 0
    answer = writer.longest_answer(request)
    if len(layout) + picture + max(1, answer - 1) > config.context:
        longer = f" and a picture of {picture}" if picture else f" and an answer of {answer}" if answer else ""
        raise ValueError(
            f"the prompt has {len(layout)} tokens, too many for the model's context of {config.context}{longer}; "
            f"shorten it"
        )
    needed, slots = 1 + nulls(request), network.cache.keys.shape[1]
    if needed > slots:
        raise ValueError(f"this guidance needs {needed} contexts at once, but the engine has {slots} slots")
    layouts = [layout]
    if opens:
        compared = null_documents(request.document, settings)
        layouts += [sequencer.prompt(document, opening="image") for document in compared]
    random = generator(settings.seed, "text")
    return Session(number, request, layouts, random, TextStream(settings.stop), opens=opens)


def picture_tokens(request: Request, document: Document, *, network: Network, sequencer: Sequencer) -> int:
    """Tokens of a picture drawn after `document`, with its time token."""
    height, width = sequencer.grid(*request.picture_size(document, network.model.config))
    return height * width + sequencer.time_token


def nulls(request: Request) -> int:
    """The most contexts that guidance compares a picture with at once."""
    if request.want == "text":
        return 0
    return most_nulls(request.settings, images_may_come=request.want == "any", document=request.document)
