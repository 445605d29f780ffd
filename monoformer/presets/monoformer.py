"""MonoFormer's three recipes (arXiv 2409.16280) with the numbers of the paper and of its released configurations.

None was run here. What the paper leaves open and the released code decides is listed in docs/paper-to-code.md: among
it the weight 0.01 of the text loss, which text is labelled, the number of steps, AdamW's betas and the clipping.
"""

from dataclasses import replace

from monoformer.config.autoencoder import AutoencoderConfig
from monoformer.config.data import FolderData, MixtureData, ParquetData, SequenceConfig, SourceConfig
from monoformer.config.diffusion import DDPMConfig
from monoformer.config.generate import GenerateConfig
from monoformer.config.model import ModelConfig
from monoformer.config.parallel import ParallelConfig
from monoformer.config.run import RunConfig
from monoformer.config.sources import ChatData
from monoformer.config.train import AdamWConfig, TrainConfig
from monoformer.config.vision import VisionConfig

TINYLLAMA = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
"""The language model that MonoFormer starts from; LLaMA 2's 32,000 tokens."""
CLIP = "openai/clip-vit-large-patch14"
"""The vision encoder of the released code's understanding recipe: 24 layers of width 1024, pictures of 224x224."""
PROMPT = "Please generate an image of {}."
"""What asks for a picture, around a class name."""
PROMPTS = (PROMPT, "{}", "an image of {}.", "an photo of {}.")
"""The released code's four ways to ask for a class, each as likely; scores ask with the first."""
CAPTION = "Please generate an image of {prompt}"
"""How the released code asks with a prompt of JourneyDB."""


def monoformer_imagenet256() -> RunConfig:
    """MonoFormer on ImageNet at 256x256, drawn from class names. 1.1 billion parameters.

    monoformer train monoformer-imagenet256 --data.root IMAGENET/train/
    Several GPUs of 80 GB for days; not run here. The paper reports FID 2.57, IS 272.6, precision 0.84, recall 0.56 at
    guidance 1.5. The folders carry the classes' names, or --data.class-names FILE does.
    """
    data = FolderData(prompts=PROMPTS, size=256, draw=1.0, describe=0.0)
    return _monoformer("monoformer-imagenet256", data, row=1152, rows=256)  # four documents of 261 to 291 tokens a row


def monoformer_t2i() -> RunConfig:
    """MonoFormer from text to image: JourneyDB and UltraChat, 9 : 1. 1.1 billion parameters.

    monoformer train monoformer-t2i --data.sources.0.files JOURNEYDB*.parquet --data.sources.1.files ULTRACHAT.jsonl
    Several GPUs of 80 GB for days; not run here. The paper reports a commonsense average of 51.12 (TinyLlama: 52.97).
    JourneyDB as parquet with the columns image and prompt; UltraChat as its JSON lines, cut to what a row holds.
    """
    pictures = ParquetData(caption=CAPTION, size=256, draw=1.0, describe=0.0)
    chats = ChatData(characters=3000)
    return _monoformer("monoformer-t2i", MixtureData(sources=(pictures, chats), weights=(0.9, 0.1)), row=1024, rows=336)


def monoformer_understanding() -> RunConfig:
    """MonoFormer that also reads pictures: JourneyDB to draw, LLaVA's pictures to describe, 1 : 1.

    monoformer train monoformer-understanding --data.sources.0.files DRAW.parquet --data.sources.1.files LLAVA.json
    Several GPUs of 80 GB for days; not run here, and the paper reports no number for it. As in the released code a
    frozen CLIP ViT-L/14 reads the pictures, 224x224 as 256 tokens; drawn ones are latent patches. LLaVA's conversations
    as they are released; --data.sources.1.images is the folder of their pictures.
    """
    drawn = ParquetData(caption=CAPTION, size=256, draw=1.0, describe=0.0)
    read = ChatData(size=256, characters=3000)
    recipe = _monoformer(
        "monoformer-understanding", MixtureData(sources=(drawn, read), weights=(0.5, 0.5)), row=1024, rows=336
    )
    return replace(
        recipe,
        vision=VisionConfig(path=CLIP),
        model=replace(recipe.model, vision_width=1024, vision_grid=(16, 16)),
    )


def _monoformer(name: str, data: SourceConfig | MixtureData, *, row: int, rows: int) -> RunConfig:
    """What the three recipes share; `rows` hold about 1024 documents. 256x256 pictures are latents of 32x32x4."""
    return RunConfig(
        name=name,
        start=TINYLLAMA,
        autoencoder=AutoencoderConfig(path="stabilityai/sd-vae-ft-ema", posterior="sample"),
        model=ModelConfig(
            width=2048,
            layers=22,
            heads=32,
            kv_heads=4,
            mlp_width=5632,
            context=2048,
            qk_norm=False,
            patch=2,
            channels=4,
            down=8,
            time="projected_token",
            image_head="dit",
            learned_variance=True,
            image_sizes=((256, 256),),
        ),
        diffusion=DDPMConfig(steps=1000, betas="linear", prediction="eps", variance="learned"),
        data=data,
        sequence=SequenceConfig(
            row=row, window=4096, drop_text=0.1, text_loss_in_image_documents=False, learned_text="all"
        ),
        train=TrainConfig(
            steps=500_000,
            rows=rows,
            optimizer=AdamWConfig(rate=1e-4, betas=(0.9, 0.999), weight_decay=0.0),
            warmup=0,
            schedule="constant",
            clip=2.0,
            text_weight=0.01,
            parallel=ParallelConfig(strategy="fsdp"),
            image_weight=1.0,
            starting_values="official",
            checkpoint_every=5000,
        ),
        generate=GenerateConfig(sampler="ddpm", steps=250, guidance=1.5),
    )
