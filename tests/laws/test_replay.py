"""A step that a run left out is read again, document by document."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from monoformer.cli.main import main
from monoformer.config.data import ScenesData, SequenceConfig
from monoformer.config.run import RunConfig
from monoformer.document import Text
from monoformer.train.build import build_run
from monoformer.train.replay import read_bad_step
from monoformer.train.trainer import Trainer
from tests import tiny


def config_of(folder: Path) -> RunConfig:
    config = tiny.run_config(folder, train={"steps": 3, "rows": 2})
    model = replace(config.model, vocabulary=0, context=256, patch=8, image_sizes=((16, 16),))
    sequence = SequenceConfig(row=256, window=8, drop_text=0.0, drop_context=0.0)
    return replace(config, data=ScenesData(size=16, objects=(1, 1)), sequence=sequence, model=model)


def test_the_documents_of_a_bad_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(tmp_path / "run")
    trainer = Trainer(build_run(config).parts)
    trainer.model.tokens.weight.register_hook(lambda g: g * torch.inf if trainer.loop.step == 1 else g)
    assert trainer.run()
    (written,) = (tmp_path / "run" / "bad-steps").glob("*.json")

    built = build_run(config)
    with built.parts.loader as loader:
        _, second = next(loader), next(loader)
    read = [built.pretrained.tokenizer.decode(ids.tolist()) for ids in second.ids]
    bad = read_bad_step(written, config)
    assert bad.step == 2
    assert len(bad.documents) == second.documents
    assert set(bad.sources.values()) == {"scenes"}
    texts = [s.text for document in bad.documents.values() for s in document.segments if isinstance(s, Text)]
    assert texts
    for text in texts:
        assert any(text in row for row in read), text

    capsys.readouterr()
    main(["data", "replay", str(written), "--out", str(tmp_path / "sheet.png")])
    printed = capsys.readouterr().out
    assert re.search(rf"step 2: .*loss.*; {len(bad.documents)} documents", printed)
    assert texts[0] in printed
    assert (tmp_path / "sheet.png").is_file()
    moved = (tmp_path / "run").rename(tmp_path / "moved")  # with its tokenizer
    main(["data", "replay", str(moved / "bad-steps" / written.name), "--out", str(tmp_path / "sheet.png")])
    assert texts[0] in capsys.readouterr().out


def test_a_file_that_is_no_step(tmp_path: Path) -> None:
    (tmp_path / "step.json").write_text("{}")
    with pytest.raises(ValueError, match="is no step that a run wrote down"):
        read_bad_step(tmp_path / "step.json", config_of(tmp_path))
