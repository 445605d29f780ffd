"""A checkpoint as a model folder: what the run itself gives out at its end, without its data."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from monoformer.cli.main import main
from monoformer.pipeline import Pipeline
from tests.end_to_end.conftest import SMALL
from tests.end_to_end.test_command_line import fails


def test_the_last_checkpoint_is_the_model_that_the_run_gave_out(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))
    main(["save", str(run), str(tmp_path / "last")])
    assert f"step {steps[-1]}" in capsys.readouterr().out
    given, saved = (load_file(folder / "model.safetensors") for folder in (run / "model", tmp_path / "last"))
    assert given.keys() == saved.keys()
    assert all(torch.equal(given[name], saved[name]) for name in given)
    assert (run / "model" / "README.md").read_text() == (tmp_path / "last" / "README.md").read_text()
    described = [json.loads((folder / "config.json").read_text()) for folder in (run / "model", tmp_path / "last")]
    assert described[0] == described[1]
    main(["save", str(run), str(tmp_path / "first"), f"--step={steps[0]}"])
    assert len(Pipeline.from_pretrained(tmp_path / "first").generate_images("a red circle")) == 1
    error = fails(capsys, "save", str(run), str(tmp_path / "none"), "--step=3")
    assert f"has those of steps {', '.join(map(str, steps))}" in error
    assert "config.json" in fails(capsys, "save", str(tmp_path), str(tmp_path / "none"))


def test_adapters_of_a_checkpoint_are_merged_into_the_base_they_were_trained_beside(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft")
    own = tmp_path / "lora"
    main(["train", "finetune", f"--from={run / 'model'}", f"--data.root={pictures}", f"--folder={own}",
          "--train.lora.rank=2", "--train.warmup=1", "--train.checkpoint-every=2", *SMALL[6:8]])  # fmt: skip
    main(["save", str(own), str(tmp_path / "saved")])
    given, saved = (load_file(folder / "model.safetensors") for folder in (own / "model", tmp_path / "saved"))
    assert given.keys() == saved.keys()
    assert all(torch.equal(given[name], saved[name]) for name in given)
    base = own / "base"
    shutil.copytree(run / "model", base)
    weights = load_file(base / "model.safetensors")
    save_file({name: weight + 1 for name, weight in weights.items()}, base / "model.safetensors", {"format": "pt"})
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({**config, "start": str(base)}))
    assert "the model that the run starts from has changed" in fails(capsys, "save", str(own), str(tmp_path / "other"))
