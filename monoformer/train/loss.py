"""Text and image losses of one pass, as sums; the trainer divides them by global counts (DESIGN 4).

    loss = text_weight * sum(cross-entropy) / labelled tokens + image_weight * sum(image loss) / target images

so that ragged passes, accumulated passes and ranks weigh every token and every image the same.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monoformer.autoencoder import Autoencoder, Moments
from monoformer.batch import IGNORED, Batch, ImageSlots
from monoformer.diffusion.objectives import Objective, flatten_losses
from monoformer.model.attention import Mask
from monoformer.model.monoformer import MonoFormer, Place, is_text
from monoformer.model.transformer import touch
from monoformer.model.unet import Skips
from monoformer.randomness import generator, uniform
from monoformer.train.breakdown import Breakdown
from monoformer.vision import VisionEncoder


def pass_losses(
    model: MonoFormer,
    batch: Batch,
    mask: Mask,
    *,
    objective: Objective,
    autoencoder: Autoencoder,
    vision: VisionEncoder | None = None,
    seed: int,
    breakdown: Breakdown | None = None,
) -> tuple[Tensor, Tensor]:
    """Sums of the text loss over labelled tokens and of the image loss over target images (two scalars, fp32).

    `breakdown` is told the loss of every token and every image.
    """
    with torch.no_grad():
        moments = [moments_of(slots, autoencoder) for slots in batch.images]
    features = [] if vision is None else [vision.encode(slots.pixels)[slots.picture] for slots in batch.vision]
    seen = [Place.of(slots) for slots in batch.vision]
    clean = [mean[slots.picture] for (mean, _), slots in zip(moments, batch.images, strict=True)]
    targets = [slots.noised.nonzero()[:, 0] for slots in batch.images]
    x_0 = [latents_of(*parts, seed) for parts in zip(batch.images, targets, moments, strict=True)]
    t = [
        times_of(slots, where, objective, seed, positions=x.shape[-2] * x.shape[-1])
        for slots, where, x in zip(batch.images, targets, clean, strict=True)
    ]
    noise = [noise_of(slots, where, x, seed) for slots, where, x in zip(batch.images, targets, x_0, strict=True)]
    hidden: list[Tensor] = []
    skips: list[Skips] = []

    def predict(x_t: list[Tensor], t: list[Tensor]) -> list[Tensor]:
        """Run the network once over text and images together; the image head on targets only."""
        images = [x.index_copy(0, where, noised) for x, where, noised in zip(clean, targets, x_t, strict=True)]
        times = [
            objective.path.network_time(torch.zeros(len(x), device=x.device).index_copy(0, where, time))
            for x, where, time in zip(clean, targets, t, strict=True)
        ]
        places = [Place.of(slots) for slots in batch.images]
        given = {"images": images, "times": times, "places": places, "features": features, "seen": seen}
        hidden.append(model(batch.ids, batch.positions, mask, **given, skips=skips))
        chosen = [Place(place.row[on], place.start[on], place.grid) for place, on in zip(places, targets, strict=True)]
        own = [tuple(kept[on] for kept in parts) for parts, on in zip(skips, targets, strict=True)]
        at = [time[on] for time, on in zip(times, targets, strict=True)]
        return [model.image(hidden[0], *parts) for parts in zip(at, chosen, own, strict=True)]

    image_losses = objective.loss(predict, x_0, t, noise)
    labelled = (batch.labels != IGNORED).flatten().nonzero()[:, 0]
    text_losses = cross_entropies(model, hidden[0], batch.labels, labelled)
    if breakdown is not None:
        tell(breakdown, batch, text=(labelled, text_losses), images=zip(targets, t, image_losses, strict=True))
    image_loss = flatten_losses(image_losses, batch.ids.device).sum()
    return text_losses.sum(), touch(image_loss, idle_parameters(model, batch))


class PassLosses(nn.Module):
    """The losses of one pass as a module, so that what wraps networks can wrap all that the pass runs of `model`."""

    def __init__(self, model: MonoFormer, losses: Callable[[Batch], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.model, self.losses = model, losses

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sums of the text and image losses."""
        return self.losses(batch)


def tell(
    breakdown: Breakdown, batch: Batch, *, text: tuple[Tensor, Tensor], images: Iterable[tuple[Tensor, Tensor, Tensor]]
) -> None:
    """Give a breakdown the losses of a pass: indices in B * T and losses of tokens; blocks, times and losses a size."""
    labelled, losses = text
    breakdown.add_text(batch.source.flatten()[labelled], losses)
    for slots, (where, time, own) in zip(batch.images, images, strict=True):
        breakdown.add_images(batch.source[slots.row[where], slots.start[where]], time, own)


def cross_entropies(model: MonoFormer, hidden: Tensor, labels: Tensor, labelled: Tensor) -> Tensor:
    """Cross-entropy (M,) in nats, fp32, at indices (M,) in B * T of hidden states (B, T, D) and labels (B, T)."""
    logits = model.text(hidden.flatten(0, 1).index_select(0, labelled)).float()
    return F.cross_entropy(logits, labels.flatten()[labelled], reduction="none")


def idle_parameters(model: MonoFormer, batch: Batch) -> list[Tensor]:
    """What a pass without images, or without an encoder's, leaves alone; but for the blocks', who know themselves."""
    named = [] if batch.images else list(model.named_parameters())
    idle: list[Tensor] = [p for name, p in named if not (is_text(name) or name.startswith("transformer.blocks."))]
    if model.vision is not None and not batch.vision:
        idle += model.vision.parameters()
    return idle


def times_of(slots: ImageSlots, targets: Tensor, objective: Objective, seed: int, *, positions: int) -> Tensor:
    """Training times (N,) of the targets within their noise limits, latents of `positions` = h w.

    Keyed by document and image; the draws of one image are spread evenly from its first.
    """
    keys, draws = _keys(slots, targets), slots.draw[targets].tolist()
    count = max(draws, default=0) + 1
    numbers = [(uniform(seed, *key, "time") + draw / count) % 1 for key, draw in zip(keys, draws, strict=True)]
    drawn, maximum = torch.tensor(numbers, dtype=torch.float64), objective.path.latest(slots.noise_limit[targets].cpu())
    times = objective.path.training_times(drawn, positions=positions, maximum=maximum)
    return times.to(slots.row.device)


def moments_of(slots: ImageSlots, autoencoder: Autoencoder) -> Moments:
    """Mean and deviation of the pictures' latents: from their cache, else by the autoencoder."""
    if slots.moments is None:
        return autoencoder.moments(slots.pixels)
    return slots.moments[:, 0], slots.moments[:, 1] if autoencoder.samples else None


def latents_of(slots: ImageSlots, targets: Tensor, moments: Moments, seed: int) -> Tensor:
    """What the targets are (N, C, h, w): the mean of their latents, or a sample keyed by document and image."""
    mean, deviation = (None if moment is None else moment[slots.picture[targets]] for moment in moments)
    assert mean is not None
    if deviation is None:
        return mean
    return mean + deviation * noise_of(slots, targets, mean, seed, purpose="posterior")


def noise_of(slots: ImageSlots, targets: Tensor, like: Tensor, seed: int, *, purpose: str = "noise") -> Tensor:
    """Normal noise shaped as `like` (N, C, h, w), keyed by document, image, purpose and draw."""
    keys, draws = _keys(slots, targets), slots.draw[targets].tolist()
    noise = [
        torch.randn(like.shape[1:], generator=generator(seed, *key, f"{purpose} {draw}" if draw else purpose))
        for key, draw in zip(keys, draws, strict=True)
    ]
    return torch.stack(noise).to(like) if noise else like


def _keys(slots: ImageSlots, targets: Tensor) -> list[tuple[int, int]]:
    pictures = slots.picture[targets]
    return list(zip(slots.document[pictures].tolist(), slots.number[pictures].tolist(), strict=True))
