"""`monoformer evaluate --peer`: tiny random folders of Stable Diffusion 1.5, XL and 3, asked and scored as ours."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import ImageChops

from monoformer.cli.main import main
from monoformer.evaluate.peer import Peer, load_peer
from tests.contracts.test_evaluate import judge

diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.slow  # diffusers' pipelines take long to import

CPU = torch.device("cpu")


def tokenizer() -> Any:
    """CLIP's, of letters."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(97, 123)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=77)


def text_encoder(*, projected: bool = False) -> Any:
    """A CLIP of one layer."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=54, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, bos_token_id=0, eos_token_id=1, projection_dim=16,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def unet(**options: Any) -> Any:
    """A U-Net of two levels, 16x16 latents."""
    return diffusers.UNet2DConditionModel(
        sample_size=16, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **options,
    )  # fmt: skip


def vae(channels: int = 4) -> Any:
    """An autoencoder that halves the sides."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=channels, sample_size=32, shift_factor=0.1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


def stable_diffusion() -> Any:
    """1.5, which draws 32x32."""
    return diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        unet=unet(cross_attention_dim=16),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl() -> Any:
    """XL: two text encoders, and conditions on the picture's size."""
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "transformer_layers_per_block": (1, 1)}
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=text_encoder(),
        text_encoder_2=text_encoder(projected=True),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=unet(cross_attention_dim=32, projection_class_embeddings_input_dim=64, **added),
        scheduler=diffusers.EulerDiscreteScheduler(),
    )


def stable_diffusion_3() -> Any:
    """3: a transformer, 16 channels, flow matching, without its T5."""
    return diffusers.StableDiffusion3Pipeline(
        vae=vae(16),
        text_encoder=text_encoder(projected=True),
        text_encoder_2=text_encoder(projected=True),
        text_encoder_3=None,
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        tokenizer_3=None,
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=16, num_layers=1, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32, out_channels=16,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip


def written(make: Callable[[], Any], where: Path, **options: Any) -> Path:
    with torch.random.fork_rng(devices=[]):
        make().save_pretrained(where, **options)
    return where


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion 1.5."""
    return written(stable_diffusion, tmp_path_factory.mktemp("peer"))


def peer(folder: Path, **options: Any) -> Peer:
    return load_peer(str(folder), **{"size": (24, 16), "device": CPU, "steps": 2, **options})


def test_a_picture_depends_on_its_prompt_and_its_seed(folder: Path) -> None:
    ours = peer(folder)
    assert (ours.settings["steps"], ours.settings["guidance"]) == (2, 7.5)
    together = ours.generate_images(["red", "red", "blue"], seed=[1, 2, 1])
    assert {picture.size for picture in together} == {(16, 24)}
    assert ImageChops.difference(together[0], together[1]).getbbox(), "another seed"
    assert ImageChops.difference(together[0], together[2]).getbbox(), "another prompt"
    (alone,) = ours.generate_images(["blue"], seed=[1])
    assert max(high for _, high in ImageChops.difference(alone, together[2]).getextrema()) <= 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # within diffusers' Euler
@pytest.mark.parametrize("make", [stable_diffusion_xl, stable_diffusion_3])
def test_its_successors_draw_too(make: Callable[[], Any], tmp_path: Path) -> None:
    ours = peer(written(make, tmp_path))
    one, other = ours.generate_images(["red", "blue"], seed=[1, 1])
    assert one.size == (16, 24)
    assert ImageChops.difference(one, other).getbbox(), "another prompt"
    assert ours.settings["steps"] == 2


def test_the_precision_is_that_asked_for_and_variants_are_found(folder: Path, tmp_path: Path) -> None:
    assert peer(folder, dtype=torch.bfloat16).network.unet.dtype == torch.bfloat16
    half = written(lambda: stable_diffusion().to(torch.float16), tmp_path / "half", variant="fp16")
    assert not [*half.glob("*/diffusion_pytorch_model.safetensors")]
    ours = peer(half, dtype=torch.float32)
    assert ours.network.unet.dtype == torch.float32
    assert len(ours.generate_images(["red"] * 9, seed=range(9))) == 9, "more than are drawn at once"


def test_a_safety_checker_is_not_asked(folder: Path, tmp_path: Path) -> None:
    checked = tmp_path / "checked"
    shutil.copytree(folder, checked)
    index = json.loads((checked / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    (checked / "model_index.json").write_text(json.dumps(index))
    assert peer(checked).network.safety_checker is None


def test_it_only_draws(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"draws pictures from text and does nothing else"):
        peer(folder).caption([], temperature=0.0, seed=[])


def test_folders_that_are_no_peer_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no model_index\.json"):
        peer(tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="cannot be loaded as a diffusers pipeline of safetensors"):
        peer(tmp_path)


def test_one_command_scores_the_peer_as_it_scores_the_model(folder: Path, run: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue ring\n")
    sizes = ["--count=4", "--batch=2", "--sampling.steps=1", "--images.splits=1", f"--images.prompts={prompts}"]
    images = [f"--images.extractor={judge(tmp_path)}", f"--images.cache={tmp_path / 'cache'}"]
    out = f"--out={tmp_path / 'scores'}"
    main(["evaluate", str(run / "model"), f"--peer={folder}", out, "--suite", "scenes", "images", *sizes, *images])
    scenes, pictures = json.loads((tmp_path / "scores/scores.json").read_text())["suites"]
    assert scenes["settings"]["tasks"] == ["draw"]
    assert scenes["model"] == str(folder)
    assert scenes["generate"] == {"peer": "StableDiffusionPipeline", "size": [32, 32], "steps": 1, "guidance": 7.5}
    assert [figure["name"] for figure in scenes["figures"]][:1] == ["draw_exact"]
    assert pictures["figures"][0]["name"] == "judge_frechet_distance"
    with pytest.raises(SystemExit):
        main(["evaluate", str(run / "model"), f"--peer={folder}", out, "--suite", "text", *sizes])
    with pytest.raises(SystemExit):
        main(["evaluate", str(run / "model"), f"--peer={folder}", out, "--sampling.top-k=3"])
