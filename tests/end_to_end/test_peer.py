"""`monoformer evaluate --peer`: a tiny random Stable Diffusion folder through the model's prompts, seeds and scores."""

import json
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of the layout of Stable Diffusion 1.5, with random weights; it draws 32x32."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    where = tmp_path_factory.mktemp("peer")
    letters = [chr(code) for code in range(97, 123)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {word: number for number, word in enumerate(words)}
    with torch.random.fork_rng(devices=[]):
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                max_position_embeddings=77, bos_token_id=0, eos_token_id=1, projection_dim=16,
            )
        )  # fmt: skip
        unet = diffusers.UNet2DConditionModel(
            sample_size=16, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16, norm_num_groups=4,
            attention_head_dim=2, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
        autoencoder = diffusers.AutoencoderKL(
            block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        )  # fmt: skip
    diffusers.StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text,
        tokenizer=CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77),
        unet=unet,
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(where)
    return where


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
