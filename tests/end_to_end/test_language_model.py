"""A run that starts from a language model, as a user types it: train --from, draw, write, export."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from monoformer.cli.main import main
from monoformer.pretrained import load_pretrained
from tests.parity.tokenizers import plain_tokenizer

SHAPE = {
    "vocab_size": 290, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 2048, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
RUN = ["--train.steps=2", "--train.rows=2", "--train.warmup=1", "--sequence.window=16", "--generate.steps=2"]


def language_model(folder: Path, config: PretrainedConfig) -> Path:
    """A language model as the hub gives one out."""
    with torch.random.fork_rng(devices=[]):
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    plain_tokenizer().save_pretrained(folder)
    return folder


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that must fail."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_run_starts_from_a_language_model_and_exports_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = language_model(tmp_path / "qwen", Qwen3Config(**SHAPE, head_dim=24, tie_word_embeddings=True))
    command = ["train", "scenes-quick", f"--from={start}", f"--folder={tmp_path / 'run'}", *RUN]
    main([*command, "--model.time=token", "--train.sample-every=2"])
    said = " ".join(capsys.readouterr().out.split())
    assert "24 tensors loaded, 290 rows of the vocabulary and 0 new ones" in said
    assert "patches.linear.weight" in said
    model = load_pretrained(tmp_path / "run" / "model").model
    assert (model.config.width, model.config.key_width, model.config.vocabulary) == (32, 24, 290)
    assert (model.config.time, model.config.patch, model.config.image_sizes) == ("token", 8, ((32, 32),))
    before = load_file(start / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    after = model.get_parameter("transformer.blocks.1.mlp.up.weight")
    assert 0 < float((after - before).detach().abs().max()) < 0.1, "trained from the old weights"

    folder = str(tmp_path / "run" / "model")
    main(["generate", folder, "a red circle", f"--out={tmp_path / 'a.png'}"])
    assert (tmp_path / "a.png").is_file()
    main(["export", folder, str(tmp_path / "plain")])
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    with torch.no_grad():
        ids = torch.arange(40)[None]
        mask = torch.ones(40, 40, dtype=torch.bool).tril()[None, None]
        ours, logits = model.text(model(ids, torch.arange(40)[None], mask)), theirs(ids).logits
    assert float((ours - logits).abs().max() / logits.abs().max()) < 1e-5
    assert "not empty" in fails(capsys, "export", folder, str(tmp_path / "plain"))
    main(["export", folder, str(tmp_path / "half"), "--precision=bf16"])
    half = load_file(tmp_path / "half" / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, after.detach().to(torch.bfloat16))


@pytest.mark.parametrize(
    ("preset", "config"),
    [
        ("finetune", Qwen2Config(**SHAPE)),
        ("folder", MistralConfig(**SHAPE, sliding_window=1024)),
    ],
)
def test_any_preset_starts_from_a_language_model(
    preset: str, config: PretrainedConfig, pictures: Path, tmp_path: Path
) -> None:
    start = language_model(tmp_path / "start", config)
    options = [f"--folder={tmp_path / 'run'}", *RUN, f"--data.root={pictures}", "--train.sample-every=0"]
    main(["train", preset, "--from", str(start), *options])
    assert load_pretrained(tmp_path / "run" / "model").model.config.width == 32
    main(["train", preset, "--from", str(start), *options])  # finished: nothing is trained again


def test_what_cannot_be_started_from_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "scenes-quick", *RUN, f"--folder={tmp_path / 'run'}"]
    windowed = language_model(tmp_path / "windowed", MistralConfig(**SHAPE, sliding_window=100))
    assert "sliding_window is 100" in fails(capsys, *command, f"--from={windowed}")
    short = language_model(tmp_path / "short", LlamaConfig(**{**SHAPE, "max_position_embeddings": 64}))
    assert "lower --sequence.row = 252 to 64" in fails(capsys, *command, f"--from={short}")
    assert "no model folder" in fails(capsys, *command, f"--from={tmp_path}")
    assert "nobody/nothing is neither a folder here nor a model" in fails(capsys, *command, "--from=nobody/nothing")
    (short / "tokenizer.json").unlink()
    (short / "tokenizer_config.json").unlink()
    assert "no tokenizer could be loaded" in fails(capsys, *command, "--sequence.row=64", f"--from={short}")
