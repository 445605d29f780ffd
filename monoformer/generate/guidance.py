"""Guidance: which contexts a picture is compared with, and how their estimates are mixed.

Pure functions outside the samplers. Invariant: a scale of 1 costs no context, and a context whose weight is 0 is never
read.
"""

from dataclasses import replace
from typing import Literal

import torch

from monoformer.config.generate import GenerateConfig
from monoformer.config.model import ModelConfig
from monoformer.diffusion.objectives import Estimate
from monoformer.document import Document, Image, Role, Segment, Text
from monoformer.dropping import unconditional


def guide(
    conditional: Estimate,
    unconditioned: Estimate,
    scale: float,
    *,
    without_images: Estimate | None = None,
    image_scale: float = 1.0,
    rescale: float = 0.0,
    channels: int = 0,
) -> Estimate:
    """Classifier-free guidance on x_0 (..., C, h, w); the rest is the conditional branch's (arXiv 2207.12598).

    The rest is the variance fraction, and where `channels` is not 0 all but so many channels of the network's output:
    those of x_0, then those of the variance, as the official code counts. At one x_t, mixing x_0,
    eps or v is the same. With `without_images` there are two scales (InstructPix2Pix, arXiv 2211.09800, equation 3):
    `scale` of the text, `image_scale` of the pictures. `rescale` draws the deviation of each x_0 back to that of the
    conditional one (arXiv 2305.08891, equations 15 and 16, there on the network's output).
    """
    x_0 = unconditioned.x_0 + scale * (conditional.x_0 - unconditioned.x_0)
    if without_images is not None:
        x_0 = x_0 + (image_scale - 1) * (unconditioned.x_0 - without_images.x_0)
    if rescale:
        wanted, got = (x.std(dim=(-3, -2, -1), keepdim=True) for x in (conditional.x_0, x_0))
        x_0 = x_0 * (rescale * wanted / got.clamp(min=1e-8) + 1 - rescale)
    fraction, more = conditional.variance_fraction, channels - x_0.shape[-3]
    if channels and more < 0:
        x_0 = torch.cat([x_0[..., :channels, :, :], conditional.x_0[..., channels:, :, :]], dim=-3)
    if more > 0 and fraction is not None and unconditioned.variance_fraction is not None:
        guided = unconditioned.variance_fraction + scale * (fraction - unconditioned.variance_fraction)
        fraction = torch.cat([guided[..., :more, :, :], fraction[..., more:, :, :]], dim=-3)
    return Estimate(x_0, fraction)


def check_channels(settings: GenerateConfig, model: ModelConfig) -> None:
    """Refuse to guide more channels than the network gives out for a picture."""
    given = model.channels * (1 + model.learned_variance)
    if settings.guided_channels > given:
        raise ValueError(
            f"generate.guided_channels = {settings.guided_channels}, but the model gives out {given} channels; "
            f"0 guides all that are drawn"
        )


def null_document(document: Document, *, keep_images: bool = True, negative: str = "") -> Document:
    """What guidance compares with: the document without its text; its images stay, as an edit must know them.

    Built by the function that drops for training, so that both null contexts are the same. A `negative` text stands
    where the last text that is not the model's own stood; in a chat the user shows all pictures and says it, in one
    turn, which every chat template allows.
    """
    if not negative:
        keep: Literal["nothing", "images"] = "images" if keep_images and document.images else "nothing"
        return unconditional(document, len(document.segments), keep=keep)
    role: Role | None = "user" if document.is_chat else None
    said = [n for n, s in enumerate(document.segments) if isinstance(s, Text) and s.role != "assistant"]
    segments: list[Segment] = []
    for number, segment in enumerate(document.segments):
        if said and number == said[-1]:
            segments.append(Text(negative, role))
        elif isinstance(segment, Image) and keep_images:
            segments.append(replace(segment, role=role))
    if not said:
        segments.append(Text(negative, role))
    return Document(tuple(segments))


def null_documents(document: Document, settings: GenerateConfig) -> list[Document]:
    """What a picture is compared with: nothing, the document without text, without images too, or both of these."""
    keeps = _kept(settings, has_images=bool(document.images))
    return [null_document(document, keep_images=keep, negative=settings.negative) for keep in keeps]


def most_nulls(settings: GenerateConfig, *, images_may_come: bool, document: Document) -> int:
    """The most contexts that a picture of a session may be compared with; pictures that it draws are images too."""
    now = len(_kept(settings, has_images=bool(document.images)))
    return max(now, len(_kept(settings, has_images=True))) if images_may_come else now


def _kept(settings: GenerateConfig, *, has_images: bool) -> list[bool]:
    """For each context without text whether it keeps the images."""
    text, image = settings.guidance, settings.image_guidance
    if not has_images or image == 1:
        return [] if text == 1 else [True]
    return [False] if text == image else [True, False]  # equal scales: the context with images alone has weight 0


def mix(estimates: list[Estimate], settings: GenerateConfig) -> Estimate:
    """What the conditional context and those of `null_documents` say together."""
    if len(estimates) == 1:
        return estimates[0]
    return guide(
        estimates[0],
        estimates[1],
        settings.guidance,
        without_images=estimates[2] if len(estimates) > 2 else None,
        image_scale=settings.image_guidance,
        rescale=settings.guidance_rescale,
        channels=settings.guided_channels,
    )
