"""One request's events as they come: words while they are written, pictures while they are drawn.

Knows nothing of models. Invariant: whoever stops listening leaves nothing behind, and other calls wait until then.
"""

from collections.abc import Iterator

from monoformer.generate.engine import Engine
from monoformer.generate.session import Event, Request


def stream(engine: Engine, request: Request) -> Iterator[Event]:
    """The events of a request that is served alone; the last is its end. ValueError, at once, if it cannot be."""
    with engine.turn:  # the tokenizer has state
        session = engine.admission.open(request)

    def events() -> Iterator[Event]:
        with engine.turn:
            number = engine.add(session)
            try:
                while True:
                    for event in engine.step():
                        yield event
                        if event.kind == "end":
                            return
            except GeneratorExit:
                engine.cancel(number)
                raise
            except BaseException:
                engine.reset()
                raise

    return events()
