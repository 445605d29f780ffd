"""Bad documents in a run: counted in its metrics, told once, and a resumed run is the same to the bit."""

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from monoformer.config.run import RunConfig
from monoformer.data.skipped import BadDocument
from monoformer.data.source import Indexed, Source
from monoformer.document import Document, Text
from monoformer.train.checkpoint import checkpoints
from monoformer.train.metrics import CLOCK, read_metrics
from monoformer.train.trainer import Trainer
from tests import tiny

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def stream() -> Source:
    """Every fifth document is broken, every seventh longer than a row."""

    def document(number: int) -> Document:
        if number % 5 == 0:
            raise BadDocument(f"picture {number} is torn", cause="broken picture")
        if number % 7 == 0:
            return Document((Text(tiny.words(Random(number), 200, 200)),))
        return tiny.document(Random(number), most=2)

    return Indexed(document, name="torn")


def trainer(config: RunConfig) -> Trainer:
    return tiny.trainer(config, stream=stream())


def lines(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in read_metrics(folder / "metrics.jsonl")]


def test_a_run_over_bad_documents_counts_them_and_resumes_with_the_same_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"steps": 4, "skip_limit": 0.5, "checkpoint_every": 2}
    straight = tiny.run_config(tmp_path / "straight", train=settings)
    broken = replace(straight, folder=str(tmp_path / "broken"))
    assert trainer(straight).run()
    said = " ".join(capsys.readouterr().out.split())
    stopped = trainer(replace(broken, train=replace(broken.train, steps=2)))
    assert stopped.run()
    assert trainer(broken).run()

    counts = [line["skipped"] for line in lines(tmp_path / "straight")]
    assert counts == sorted(counts)
    assert counts[-1] > counts[0] > 0
    assert lines(tmp_path / "broken") == lines(tmp_path / "straight")
    kept = json.loads((tmp_path / "straight" / "skipped.json").read_text())
    assert kept == json.loads((tmp_path / "broken" / "skipped.json").read_text())
    assert kept["torn"]["read"] % straight.sequence.window == 0
    causes = kept["torn"]["skipped"]
    assert causes["broken picture"]["count"] == -(-kept["torn"]["read"] // 5)
    assert causes["broken picture"]["examples"][1] == "document 5: picture 5 is torn"
    assert said.count("documents of torn: broken picture (document 0: picture 0 is torn)") == 1
    assert said.count("longer than a row") == 1


def test_a_run_with_too_many_bad_documents_ends_saved_and_says_why(tmp_path: Path) -> None:
    config = tiny.run_config(tmp_path, train={"steps": 50, "rows": 1, "pass_rows": 1})
    running = trainer(config)
    with pytest.raises(ValueError, match=r"of the source torn cannot be used, .*for one cause.*--train\.skip-limit"):
        running.run()
    (saved,) = checkpoints(tmp_path / "checkpoints")
    assert saved.name == f"step-{running.loop.step:08d}", "what was learned is kept"
    assert running.loop.step > 0
    more = replace(config.train, steps=running.loop.step + 1, skip_limit=1.0)
    assert trainer(replace(config, train=more)).run(), "and goes on once the limit is raised"
