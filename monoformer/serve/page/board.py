"""Pictures on their way: what the events of several drawings have told so far.

Knows nothing of models or of Gradio.
"""

from dataclasses import dataclass, field

from monoformer.document import Image
from monoformer.generate.session import Event
from monoformer.serve.page.pictures import tiles


@dataclass
class Board:
    """The pictures of some requests, in their order."""

    names: list[str]
    """What stands under each."""
    seen: list[Image | None] = field(init=False)
    """The latest preview of each, in the end the picture."""
    done: list[Image | None] = field(init=False)
    """The finished pictures."""
    step: list[int] = field(init=False)
    steps: list[int] = field(init=False)
    """Evaluations of the network, done and in all; 0 before the first."""

    def __post_init__(self) -> None:
        count = len(self.names)
        self.seen, self.done = [None] * count, [None] * count
        self.step, self.steps = [0] * count, [0] * count

    def take(self, event: Event) -> None:
        """Note what has happened."""
        at = event.session
        if event.kind == "progress":
            self.step[at], self.steps[at] = event.step, event.steps
            self.seen[at] = event.image or self.seen[at]
        elif event.kind == "image":
            self.seen[at] = self.done[at] = event.image

    @property
    def finished(self) -> list[Image]:
        """The pictures that are done."""
        return [image for image in self.done if image is not None]

    def html(self) -> str:
        """All of them as they are now, each with a bar of its steps."""
        captions = [
            f"{name} · step {step} of {steps}" if steps else f"{name} · waiting"
            for name, step, steps in zip(self.names, self.step, self.steps, strict=True)
        ]
        share = [step / steps if steps else 0.0 for step, steps in zip(self.step, self.steps, strict=True)]
        return tiles(self.seen, captions, share=share)
