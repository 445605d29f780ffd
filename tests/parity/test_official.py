"""Checkpoints of the official code: recorded outputs, its other settings, and the folders that they become."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend
from tokenizers import models

from monoformer.autoencoder import Pixels
from monoformer.cli.main import main as command
from monoformer.config.diffusion import DDPMConfig
from monoformer.config.generate import GenerateConfig
from monoformer.diffusion.objectives import build_objective
from monoformer.document import Document, Text
from monoformer.generate.guidance import null_document
from monoformer.generate.network import Network
from monoformer.generate.passes import Context, read
from monoformer.pretrained import Pretrained, load_official, load_pretrained
from monoformer.tokenizer import Tokenizer
from tests import latents
from tests.parity import official
from tests.parity.official_reference import IMAGE, NOTHING, PROMPT, SCALE, START, STEPS, Reference
from tests.parity.tokenizers import plain_tokenizer

FIXTURE = Path(__file__).resolve().parents[3] / "shared" / "fixtures" / "official-tiny"
needs_fixture = pytest.mark.skipif(not FIXTURE.is_dir(), reason=f"the recording is not here: no folder {FIXTURE}")

ADALN, TOKEN = "adaln_before_decoder", "add_before_image_tokens"
VARIANTS: dict[str, dict[str, Any]] = {
    "as released": {},
    "modulated": {"decoder_t_embed": ADALN},
    "modulated, shifted head, positions at each layer": {
        "decoder_t_embed": ADALN, "use_adaln_final_layer": False, "add_pos_embed_each_layer": True,
        "num_hidden_layers": 3,
    },
    "shifted head, no positions, causal": {
        "use_adaln_final_layer": False, "use_pos_embed": False, "use_bi_attn_img_tokens": False, "hidden_size": 36,
        "num_attention_heads": 6, "num_key_value_heads": 6,
    },
    "positions at each layer, no variance": {"add_pos_embed_each_layer": True, "learn_sigma": False},
    "modulated, causal, no positions, no variance": {
        "decoder_t_embed": ADALN, "use_bi_attn_img_tokens": False, "use_pos_embed": False, "learn_sigma": False,
        "add_pos_embed_each_layer": True,
    },
    "patch 1, three channels": {"patch_size": 1, "in_channels": 3, "image_size": 40, "decoder_t_embed": ADALN},
    "patch 4, sixteen channels": {"patch_size": 4, "in_channels": 16, "image_size": 102},
    "one channel": {"in_channels": 1},
    "two channels": {"in_channels": 2, "patch_size": 1},
    "one channel, no variance": {"in_channels": 1, "learn_sigma": False},
    "more image tokens than max_position_embeddings": {"max_position_embeddings": 10},
    "biases, tied, stretched": {
        "attention_bias": True, "tie_word_embeddings": True, "rope_scaling": {"type": "linear", "factor": 2.5},
        "rope_theta": 5e5, "rms_norm_eps": 1e-6,
    },
}  # fmt: skip


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line of a command that must fail."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        command([str(argument) for argument in arguments])
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def rewrite(folder: Path, **changes: Any) -> Path:
    """Change config.json; None takes a field out."""
    path = folder / "config.json"
    fields = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}), encoding="utf-8")
    return folder


# --- what is computed ---


@needs_fixture
def test_everything_recorded_of_the_official_code_is_reproduced() -> None:
    errors = official.compare(FIXTURE)
    groups = {name.split(".")[0] for name in errors}
    assert groups == {"text", "t2i0", "t2i1", "cfg", "ddim20", "loss", "posterior"}
    assert len(errors) == 14
    assert max(errors.values()) < official.TOLERANCE / 10, errors


@pytest.mark.parametrize("name", VARIANTS)
def test_every_setting_computes_what_its_equations_say(name: str, tmp_path: Path) -> None:
    errors = official.compare(Reference(**VARIANTS[name]).write(tmp_path / "made"))
    assert set(errors) == {
        *("text.logits", "t2i0.logits", "t2i0.model_output", "cfg.model_output", f"ddim{STEPS}.sample")
    }
    assert max(errors.values()) < 2e-5, errors


def test_the_comparison_prints_and_sees_a_wrong_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Reference().write(tmp_path / "made")
    monkeypatch.setattr("sys.argv", ["official", str(folder)])

    def said(**changes: torch.Tensor) -> tuple[int | str | None, list[str]]:
        recorded = {name: t for name, t in load_file(folder / "expected.safetensors").items() if "logits" in name}
        inputs = {name: t for name, t in load_file(folder / "expected.safetensors").items() if "t2i0" in name}
        save_file({**recorded, **inputs, **changes}, folder / "expected.safetensors")
        with pytest.raises(SystemExit) as stop:
            official.main()
        return stop.value.code, capsys.readouterr().out.splitlines()

    code, lines = said()
    assert code == 0
    assert [line.split()[0] for line in lines[:-1]] == ["t2i0.logits", "t2i0.model_output"]
    assert json.loads(lines[-1])["max_error"] < 1e-5
    code, lines = said(**{"t2i0.model_output": 1.01 * load_file(folder / "expected.safetensors")["t2i0.model_output"]})
    assert code == 1
    assert json.loads(lines[-1])["max_error"] == pytest.approx(0.01 / 1.01, rel=1e-3)


def test_sequences_are_compared_up_to_where_the_official_code_cuts_them(tmp_path: Path) -> None:
    folder = rewrite(Reference().write(tmp_path / "made"), tokenizer_max_length=4)
    recorded = load_file(folder / "expected.safetensors")
    text = {"text.input_ids": recorded["text.input_ids"], "text.logits": recorded["text.logits"][:, :4].clone()}
    save_file(text, folder / "expected.safetensors")
    assert official.compare(folder)["text.logits"] < 1e-5


# --- what is converted ---


def drawn(made: Pretrained, prompt: str, noise: torch.Tensor) -> torch.Tensor:
    """A latent that the model draws for a prompt, guided on three channels."""
    model = made.model
    network = Network(
        model=model, objective=build_objective(made.diffusion), autoencoder=Pixels(), cache=model.cache(2, 32)
    )
    contexts, document = [Context(0), Context(1)], Document((Text(prompt, "user"),))
    layouts = [made.sequencer().prompt(d, opening="image") for d in (document, null_document(document))]
    assert layouts[0].ids == PROMPT[:-2]
    assert layouts[1].ids == NOTHING[:-2]
    read(network, contexts, layouts)
    settings = GenerateConfig(sampler="ddim", steps=STEPS, guidance=SCALE, guided_channels=3)
    return official.draw(network, contexts, noise, settings)


@pytest.mark.parametrize("time", [ADALN, TOKEN])
def test_a_converted_folder_draws_what_the_checkpoint_did(
    time: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = Reference(decoder_t_embed=time)
    folder = reference.write(tmp_path / "official")
    command(["convert", str(folder), str(tmp_path / "ours")])
    said = capsys.readouterr().out
    assert "no tokenizer" in said
    assert "--tokenizer" in said
    made = load_pretrained(tmp_path / "ours")
    assert made.diffusion == DDPMConfig(variance="learned")
    assert made.model.config.image_sizes == ((64, 64),)
    assert made.autoencoder.path == "stabilityai/sd-vae-ft-mse"
    assert made.generate.guided_channels == 0, "one of the peers' defects"
    recorded = load_file(folder / "expected.safetensors")
    words = " ".join(map(str, PROMPT[1:-3]))
    latent = drawn(made, words, recorded[f"ddim{STEPS}.x_T"][0])
    assert official.error_of(latent[None], recorded[f"ddim{STEPS}.sample"]) < 1e-5
    with pytest.warns(UserWarning, match="no token for some of '23 </s> cat 88'"):
        assert made.tokenizer.encode("23 </s> cat 88") == [23, 0, 0, 0]
    assert made.tokenizer.decode([1, 23, 71, START]) == "23 71"
    theirs, ours = reference.weights, made.model.state_dict()
    assert torch.equal(ours["transformer.blocks.1.mlp.up.weight"], theirs["model.layers.1.mlp.up_proj.weight"])
    assert torch.equal(ours["patches.linear.weight"][:, 1], theirs["x_embedder.weight"][:, 4]), "channels go last"


def test_a_converted_folder_draws_pictures_with_an_autoencoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import diffusers

    shape: dict[str, Any] = {"block_out_channels": (8,) * 4, "norm_num_groups": 4, "latent_channels": 4}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    latents.randomize(diffusers.AutoencoderKL(**shape, **blocks), 0).save_pretrained(tmp_path / "vae")
    folder = Reference().write(tmp_path / "official", recorded=False)
    out = tmp_path / "ours"
    command(["convert", str(folder), str(out), f"--autoencoder={tmp_path / 'vae'}"])
    picture = tmp_path / "a.png"
    options = ["--sampling.steps=2", "--sampling.guidance=2.5", "--sampling.guided-channels=3"]
    command(["generate", str(out), "5 17 23", f"--out={picture}", "--device=cpu", *options])
    with PILImage.open(picture) as image:
        assert image.size == (64, 64)

    assert "autoencoder in the folder" in capsys.readouterr().out
    command(["convert", str(folder), str(tmp_path / "without")])
    assert "fetches it from the hub; without a network, convert again with --autoencoder" in capsys.readouterr().out
    again = tmp_path / "b.png"
    given = f"--autoencoder={tmp_path / 'vae'}"
    command(["generate", str(tmp_path / "without"), "5 17 23", f"--out={again}", "--device=cpu", given, *options])
    assert again.read_bytes() == picture.read_bytes()

    bare = Reference(in_channels=3).write(tmp_path / "three", recorded=False)
    capsys.readouterr()
    command(["convert", str(bare), str(tmp_path / "bare")])
    assert "--autoencoder NAME" in capsys.readouterr().out
    assert "names no autoencoder" in fails(capsys, "generate", tmp_path / "bare", "5 17")


def test_a_converted_folder_writes_without_its_autoencoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Reference().write(tmp_path / "official", recorded=False)
    out = tmp_path / "ours"
    command(["convert", str(folder), str(out)])
    (out / "config.json").write_text((out / "config.json").read_text().replace("stabilityai/sd-vae-ft-mse", "./gone"))
    capsys.readouterr()
    command(["write", str(out), "5 17 23", "--device=cpu", "--sampling.max-tokens=3"])
    assert capsys.readouterr().out.startswith("5 17 23")
    for given in (["generate", out, "5 17"], ["serve", out, "--port=0"], ["evaluate", out, "--suite=scenes"]):
        said = fails(capsys, *given)
        assert "'./gone'" in said
        assert "monoformer convert CHECKPOINT OUT --autoencoder FOLDER" in said


def test_the_type_of_the_numbers_is_kept(tmp_path: Path) -> None:
    reference = Reference()
    reference.weights = {name: tensor.bfloat16() for name, tensor in reference.weights.items()}
    folder = reference.write(tmp_path / "official", recorded=False)
    command(["convert", str(folder), str(tmp_path / "ours")])
    stored = load_file(tmp_path / "ours" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}


def language_models_tokenizer(folder: Path, size: int = 86) -> Path:
    """The tokenizer of the language model that the checkpoint began as, with a chat template of its own."""
    backend = Backend(models.BPE({f"{chr(0x4E00 + i)}": i for i in range(size - 3)}, []))
    tokenizer = plain_tokenizer()
    tokenizer = type(tokenizer)(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = "{% for message in messages %}<|user|>{{ message['content'] }}{% endfor %}"
    assert len(tokenizer) == size
    tokenizer.save_pretrained(folder)
    return folder


def test_a_tokenizer_gets_the_official_special_tokens_at_its_end(tmp_path: Path) -> None:
    plain = language_models_tokenizer(tmp_path / "llama")
    folder = Reference().write(tmp_path / "official", recorded=False)
    command(["convert", str(folder), str(tmp_path / "ours"), f"--tokenizer={plain}"])
    made = load_pretrained(tmp_path / "ours")
    own = made.tokenizer
    assert (own.size, own.pad, own.patch, own.boi, own.eoi) == (90, 86, IMAGE, START, START + 1)
    letters = chr(0x4E00 + 5) + chr(0x4E00 + 7)
    layout = made.sequencer().prompt(Document((Text(letters, "user"),)), opening="image")
    assert layout.ids == [own.bos, 5, 7, START], "its own template is not the one that images were trained with"
    turns = Document((Text(letters, "user"), Text(letters, "assistant")))
    assert made.sequencer().document(turns).ids == [own.bos, 5, 7, 5, 7, own.eos]

    shutil.copytree(plain, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("config.json"))
    assert load_official(folder).tokenizer_from == str(folder)
    (folder / "cfg.json").write_text(
        json.dumps({"use_chat_template": True, "chat_template": "{{ bos_token }}{{ messages[0]['content'] }}!"}),
        encoding="utf-8",
    )
    shutil.copytree(folder, folder / "ema", ignore=shutil.ignore_patterns("token*", "special*", "chat*", "cfg*"))
    averaged = load_official(folder / "ema")
    assert Path(averaged.tokenizer_from) == folder
    chosen = averaged.pretrained.tokenizer.render([{"role": "user", "content": "x"}])
    assert chosen == "<s>x!", "what cfg.json names"


def test_another_models_tokenizer_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Reference().write(tmp_path / "official", recorded=False)
    wrong = language_models_tokenizer(tmp_path / "llama", size=80)
    said = fails(capsys, "convert", folder, tmp_path / "ours", f"--tokenizer={wrong}")
    assert "<image> at 81" in said
    assert "image_token_index = 87" in said
    assert not (tmp_path / "ours").exists()


def test_what_the_official_code_never_reads_may_be_missing(tmp_path: Path) -> None:
    folder = Reference(use_pos_embed=False).write(tmp_path / "official", recorded=False)
    made = load_official(rewrite(folder, image_size=None, eos_token_id=[2, 5])).pretrained
    assert made.model.config.image_sizes == ((256, 256),)
    assert made.tokenizer.stops == {2}, "the official template ends with its eos alone"
    assert made.model.config.context == 32 // 2 * (32 // 2) + 128, "a picture and a text, beyond its 256 positions"


# --- what is refused ---


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"decoder_t_embed": "add_before_decoder"}, "'add_before_decoder', which cannot run in the official code"),
        ({"decoder_t_embed": "add_at_each_layer"}, "'add_at_each_layer', which cannot run in the official code"),
        ({"decoder_t_embed": "add_with_embed_at_each_layer"}, "'add_with_embed_at_each_layer', which cannot run"),
        ({"decoder_t_embed": "adaln_at_each_layer"}, "'adaln_at_each_layer', but only add_before_image_tokens and"),
        ({"decoder_t_embed": None}, "no decoder_t_embed.*--from"),
        ({"learn_sigma": None, "patch_size": None}, "lacks learn_sigma, patch_size"),
        ({"image_size": 72}, "a latent of 9x9, which does not divide"),
        ({"image_size": 8}, "a latent of 1x1, which does not divide"),
        ({"vision_encoder": "clip"}, "vision_encoder is 'clip'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' cannot be loaded"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"image_token_index": "87", "image_size": "256"}, "lacks image_size, image_token_index, or has no number"),
        ({"image_token_index": None}, "special tokens at.*--tokenizer"),
        ({"image_token_index": 89}, "special tokens at"),
        ({"pad_token_id": 89}, "pad_token_id = 89 .* cannot be told; give --tokenizer"),
        ({"image_size": None}, "lacks image_size"),
        ({"in_channels": 3}, r"x_embedder\.weight.*is \(32, 16\), but.*should be \(32, 12\)"),
        ({"use_adaln_final_layer": False}, r"lacks final_layer\.mlp\.1\.bias and 1 more"),
        ({"decoder_t_embed": ADALN}, r"lacks adaLN_module\.1\.bias"),
        ({"num_hidden_layers": 1}, r"also holds model\.layers\.1\.input_layernorm\.weight and 8 more.*no official"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = rewrite(Reference().write(tmp_path / "official", recorded=False), **changes)
    with pytest.raises(ValueError, match=said):
        load_official(folder)


def test_an_official_checkpoint_is_no_model_folder_and_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Reference().write(tmp_path / "official", recorded=False)
    assert "monoformer convert" in fails(capsys, "generate", folder, "5 17")
    assert "no config.json" in fails(capsys, "convert", tmp_path, tmp_path / "ours")
    assert fails(capsys, "convert", folder, folder), "the checkpoint is not written over"
    (folder / "model.safetensors").unlink()
    assert "only safetensors" in fails(capsys, "convert", folder, tmp_path / "ours")
    with pytest.raises(ValueError, match="no tokenizer could be loaded"):
        Tokenizer.from_folder(folder)
