"""Language before and after training on pictures: the same evaluators on two models, and what was lost.

Knows evaluators and model folders. Invariant: both models read the same items in the same order.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from monoformer.evaluate.evaluator import Evaluator
from monoformer.evaluate.score import Score, difference
from monoformer.pretrained import Pretrained, find_folder, is_monoformer, load_llama, load_pretrained


@dataclass(frozen=True)
class ForgettingEvaluator:
    """What both say, name by name."""

    before: Evaluator
    after: Evaluator

    @property
    def total(self) -> int:
        """Items of both."""
        return self.before.total + self.after.total

    def run(self) -> Iterator[tuple[str, float]]:
        """before_NAME, after_NAME, difference_NAME (after - before) and ratio_NAME (after / before)."""
        for (name, then), (again, now) in zip(self.before.run(), self.after.run(), strict=True):
            assert name == again, "two models were asked for different scores"
            then, now = (value if isinstance(value, Score) else Score(value) for value in (then, now))
            yield f"before_{name}", then
            yield f"after_{name}", now
            yield f"difference_{name}", difference(now, then)
            if then:
                yield f"ratio_{name}", Score(now / then, count=now.count)


def load_before(name: str, after: Pretrained) -> tuple[Pretrained, int]:
    """The model before, on the device and in the precision of the one after, and how many rows of its vocabulary count.

    Of a language model only its own rows do (0: all): the image tokens that we add were never trained. Raises
    ValueError when there is no such model.
    """
    folder = find_folder(name)
    weight = after.model.tokens.weight
    if is_monoformer(folder):
        return load_pretrained(folder, device=weight.device, dtype=weight.dtype), 0
    image_side = replace(after.model.config, experts="shared")
    loaded = load_llama(folder, image_side=image_side, seed=0, device=weight.device, dtype=weight.dtype)
    before = replace(after, model=loaded.model, tokenizer=loaded.tokenizer)
    return before, loaded.model.config.text_vocabulary
