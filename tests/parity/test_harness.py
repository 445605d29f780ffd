"""The lm_eval adaptor gives the numbers of lm_eval's own `hf` model on the exported folder."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers.processors import TemplateProcessing

from monoformer.config.evaluate import TaskScores
from monoformer.evaluate.build import build_evaluator
from monoformer.evaluate.harness import build_adaptor, writing_settings
from monoformer.evaluate.tasks import TaskEvaluator, read_tasks
from monoformer.pipeline import Pipeline
from monoformer.pretrained import export_llama
from tests import tiny

try:
    import lm_eval.models.huggingface as theirs
    from lm_eval.api.instance import Instance
except ImportError:
    theirs = None  # type: ignore[assignment]

needs_lm_eval = pytest.mark.skipif(
    theirs is None, reason="this needs lm_eval and its hf model (pip install lm_eval[hf])"
)
pytestmark = pytest.mark.filterwarnings("ignore")  # lm_eval's own

PAIRS = [
    ("the red circle", " is seen"),
    ("what moves? ", "a square"),
    ("", "the large blue square"),
    ("a small square is left of the red circle. " * 8, " what is seen"),
]
TASK = """
task: seen
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(tiny.pretrained(qk_norm=False), slots=2)


FILTERED = """
task: filtered
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{query}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 4, do_sample: false}}
filter_list:
  - name: strict-match
    filter:
      - {{function: regex, regex_pattern: "(never)"}}
      - {{function: take_first}}
  - name: always
    filter:
      - {{function: regex, regex_pattern: "(never)", fallback: circle}}
      - {{function: take_first}}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


def exported(pipeline: Pipeline, folder: Path, *, bos: bool) -> Any:
    """lm_eval's model of the exported folder; its tokenizer begins a text with bos, or does not."""
    pretrained = pipeline.pretrained
    export_llama(folder, pretrained.model, pretrained.tokenizer)
    if bos:
        file = str(folder / "tokenizer.json")
        backend = Backend.from_file(file)
        backend.post_processor = TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", pretrained.tokenizer.bos)]
        )
        backend.save(file)
    return theirs.HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=2)


def asked(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    return [Instance(request_type=kind, doc={}, arguments=own, idx=i) for i, own in enumerate(arguments)]


@needs_lm_eval
@pytest.mark.parametrize("bos", [False, True])
def test_continuations_are_as_likely_as_in_hf(pipeline: Pipeline, tmp_path: Path, bos: bool) -> None:
    requests = asked("loglikelihood", *PAIRS)
    ours = build_adaptor(pipeline, bos=bos).loglikelihood(requests)
    hf = exported(pipeline, tmp_path / "llama", bos=bos).loglikelihood(requests)
    for (value, greedy), (their_value, their_greedy) in zip(ours, hf, strict=True):
        assert value == pytest.approx(their_value, rel=1e-4)
        assert greedy == their_greedy


@needs_lm_eval
def test_whole_texts_are_as_likely_as_in_hf(pipeline: Pipeline, tmp_path: Path) -> None:
    requests = asked("loglikelihood_rolling", ("the red circle",), ("a square moves. " * 90,))
    ours = build_adaptor(pipeline).loglikelihood_rolling(requests)
    hf = exported(pipeline, tmp_path / "llama", bos=False).loglikelihood_rolling(requests)
    assert ours == pytest.approx(hf, rel=1e-4)


@needs_lm_eval
def test_the_same_is_written_as_by_hf(pipeline: Pipeline, tmp_path: Path) -> None:
    settings = {"until": ["  "], "max_gen_toks": 6, "do_sample": False}
    requests = asked("generate_until", ("the red circle", dict(settings)), ("what", dict(settings)))
    ours = build_adaptor(pipeline).generate_until(requests)
    assert ours == exported(pipeline, tmp_path / "llama", bos=True).generate_until(requests)
    assert all(ours)


@needs_lm_eval
def test_a_context_that_is_too_long_loses_its_beginning(pipeline: Pipeline) -> None:
    settings = {"until": ["  "], "max_gen_toks": 6, "do_sample": False}
    words, room = "the red circle is seen. " * 60, pipeline.pretrained.model.config.context - 1 - 6
    kept = pipeline.pretrained.tokenizer.decode(pipeline.pretrained.tokenizer.encode(words)[-room:])
    long, short = build_adaptor(pipeline).generate_until(
        asked("generate_until", *((t, settings) for t in (words, kept)))
    )
    assert long == short
    assert long


@needs_lm_eval
def test_each_filter_of_a_task_has_its_own_figure(pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"query": "the red", "answer": "circle"}) + "\n")
    (tmp_path / "filtered.yaml").write_text(FILTERED.format(file=tmp_path / "a.jsonl"))
    config = TaskScores(harness=("filtered",), harness_path=str(tmp_path))
    found = dict(build_evaluator(config, pipeline, data=None).run())
    assert sorted(found) == ["filtered_exact_match_always", "filtered_exact_match_strict-match"]
    assert found["filtered_exact_match_always"] == 1


@needs_lm_eval
def test_a_task_of_lm_eval_and_the_same_task_from_a_file(pipeline: Pipeline, tmp_path: Path) -> None:
    lines = [
        {"query": f"Question: what is {word}?", "choices": ["a red circle", "left", "the square"], "gold": i % 3}
        for i, word in enumerate(tiny.WORDS)
    ]
    file = tmp_path / "arc_easy.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "seen.yaml").write_text(TASK.format(file=file))
    config = TaskScores(harness=("seen",), harness_path=str(tmp_path / "tasks"))
    found = dict(build_evaluator(config, pipeline, data=None).run())
    items = read_tasks(str(tmp_path), ("arc_easy",))
    own = dict(TaskEvaluator(pretrained=pipeline.pretrained, items=items).run())
    assert found["seen_acc"] == own["arc_easy_accuracy"]
    assert found["seen_acc_norm"] == own["arc_easy_accuracy_normalized"]
    assert found["seen_acc"].count == len(lines)
    assert found["seen_acc"].low < found["seen_acc"] < found["seen_acc"].high
    hf = exported(pipeline, tmp_path / "llama", bos=True)
    said = theirs_scores(hf, tmp_path / "tasks")
    assert (said["acc,none"], said["acc_norm,none"]) == (found["seen_acc"], found["seen_acc_norm"])


def theirs_scores(model: Any, path: Path) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    said = simple_evaluate(model=model, tasks=["seen"], task_manager=TaskManager(include_path=str(path)))
    results: dict[str, Any] = said["results"]["seen"]
    return results


def test_settings_of_writing_are_ours_or_refused() -> None:
    given = {"until": ["\n"], "max_gen_toks": 5, "do_sample": False, "temperature": 0.7}
    assert writing_settings(given) == {"max_tokens": 5, "stop": ("\n",), "temperature": 0.0}
    assert writing_settings({"do_sample": True, "top_p": 0.9}) == {"max_tokens": 256, "stop": (), "top_p": 0.9}
    with pytest.raises(ValueError, match="the setting 'max_gen_tok', which we do not have; did you mean"):
        writing_settings({"max_gen_tok": 5})
