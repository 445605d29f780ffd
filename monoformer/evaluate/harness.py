"""lm_eval on our models: the adaptor that it asks, and its tasks as an evaluator.

Knows lm_eval's requests and the pipeline. Invariant: texts become tokens as lm_eval's own `hf` model makes them of the
exported folder, so the numbers are the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from monoformer.config.generate import CHOOSING, changed
from monoformer.config.spelling import hint
from monoformer.document import Document
from monoformer.evaluate.journal import Journal
from monoformer.evaluate.likelihood import ROWS, continuation, read_layouts
from monoformer.evaluate.score import Score, Z
from monoformer.evaluate.tasks import encode_pair
from monoformer.generate.session import Request
from monoformer.pipeline import Pipeline

REQUESTS = 256
"""Requests that are laid out at once."""
SETTINGS = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "max_gen_toks": "max_tokens"}
"""Names of lm_eval's settings of writing, and ours."""


def build_adaptor(pipeline: Pipeline, *, rows: int = ROWS, bos: bool = True) -> Any:
    """An `lm_eval.api.model.LM` around the pipeline's model.

    `bos`: whether every text begins with it, as in our training, and in `hf` where the tokenizer itself adds one.
    Raises ValueError where lm_eval is not installed.
    """
    try:
        from lm_eval.api.model import LM
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    except ImportError:
        raise ValueError("this needs lm_eval; install it with: pip install 'monoformer[evaluate]'") from None
    pretrained = pipeline.pretrained
    tokenizer, length = pretrained.tokenizer, pretrained.model.config.context

    def score(pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = []
        for first in range(0, len(pairs), REQUESTS):
            layouts = [continuation(*pair, length=length) for pair in pairs[first : first + REQUESTS]]
            found += [(-reading.nats, reading.greedy) for reading in read_layouts(pretrained, layouts, rows=rows)]
        return found

    def write(context: str, settings: dict[str, Any]) -> str:
        tokens, room = tokenizer.encode(context), length - 1 - int(settings["max_tokens"])
        if len(tokens) <= room or room < 1:  # without room, the pipeline's refusal says so
            return pipeline.generate_text(context, **settings)[0]
        own = changed(pretrained.generate, settings)
        request = Request(document=Document(()), tokens=tuple(tokens[-room:]), want="text", settings=own)
        return pipeline.engine.run([request])[0].text

    class Adaptor(LM):  # type: ignore[misc]
        """What lm_eval asks."""

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            """Of a continuation after a context, and whether it is the greedy one."""
            return score([encode_pair(tokenizer, *request.args, bos=bos) for request in requests])

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            """Of whole texts, in windows that predict every token once."""
            found: list[float] = []
            for request in requests:
                parts = get_rolling_token_windows(
                    token_list=tokenizer.encode(request.args[0]),
                    prefix_token=tokenizer.bos,
                    max_seq_len=length,
                    context_len=1,
                )
                found.append(sum(value for value, _ in score([make_disjoint_window(part) for part in parts])))
            return found

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            """Texts that follow contexts, up to a stop string; contexts that are too long lose their beginning."""
            asked = [(context, writing_settings(dict(settings))) for context, settings in (r.args for r in requests)]
            return [write(context, {"temperature": 1.0, **settings}) for context, settings in asked]

    return Adaptor()


def writing_settings(given: dict[str, Any]) -> dict[str, Any]:
    """lm_eval's settings of writing as ours; ValueError for one that we do not have."""
    until, sampled = given.pop("until", None), given.pop("do_sample", None)
    unknown = sorted(given.keys() - SETTINGS.keys())
    if unknown:
        near = hint(unknown[0], SETTINGS, otherwise=f"there are {', '.join(SETTINGS)}")
        raise ValueError(f"the task asks for the setting {unknown[0]!r}, which we do not have; {near}")
    settings = {SETTINGS[name]: value for name, value in given.items()}
    if not sampled:
        settings = {name: value for name, value in settings.items() if name not in CHOOSING} | {"temperature": 0.0}
    stop = tuple(one for one in ((until,) if isinstance(until, str) else until or ()) if one)
    return {"max_tokens": 256, **settings, "stop": stop}


@dataclass(frozen=True, kw_only=True)
class HarnessEvaluator:
    """Tasks of lm_eval, by its own names and files."""

    pipeline: Pipeline
    tasks: Sequence[str]
    path: str = ""
    """Folder of more task files."""
    count: int = 0
    """Most items of each task; 0: all."""
    rows: int = ROWS
    """Packed rows in one pass."""
    journal: Journal = field(default_factory=Journal)

    @property
    def total(self) -> int:
        """Tasks."""
        return len(self.tasks)

    def run(self) -> Iterator[tuple[str, float]]:
        """TASK_METRIC as lm_eval calls them, with its own standard errors."""
        for task in self.tasks:
            found = self.journal.remember("harness", task, count=1, compute=partial(self._ask, task))
            for name, (value, error, count) in found.items():
                low, high = (None, None) if error is None else (value - Z * error, value + Z * error)
                yield f"{task}_{name}", Score(value, low=low, high=high, count=count)

    def _ask(self, task: str) -> dict[str, tuple[float, float | None, int]]:
        """Value, standard error and number of items of each metric."""
        adaptor = build_adaptor(self.pipeline, rows=self.rows)
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        said = simple_evaluate(
            model=adaptor,
            tasks=[task],
            limit=self.count or None,
            task_manager=TaskManager(include_path=self.path or None),
            log_samples=False,
            bootstrap_iters=1000,
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
        )
        found = {}
        for own, results in said["results"].items():
            count = int(said.get("n-samples", {}).get(own, {}).get("effective", 0))
            for key, value in results.items():
                metric, _, kind = key.partition(",")
                if isinstance(value, float) and not metric.endswith("_stderr"):
                    error = results.get(f"{metric}_stderr,{kind}")
                    metric = metric if kind in ("", "none") else f"{metric}_{kind}"  # of several filters, each
                    name = metric if own == task else f"{own}_{metric}"
                    found[name] = (value, error if isinstance(error, float) else None, count)
        return found
