"""Text and image losses of one pass, as sums; the trainer divides them by global counts (DESIGN 4).

    loss = text_weight * sum(cross-entropy) / labelled tokens + image_weight * sum(image loss) / target images

so that ragged passes, accumulated passes and ranks weigh every token and every image the same.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from monoformer.autoencoder import Autoencoder, Moments
from monoformer.batch import IGNORED, Batch, ImageSlots
from monoformer.diffusion.objectives import Objective, flatten_losses
from monoformer.model.attention import Mask
from monoformer.model.monoformer import MonoFormer, Place
from monoformer.model.unet import Skips
from monoformer.randomness import generator, uniform
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
) -> tuple[Tensor, Tensor]:
    """Sums of the text loss over labelled tokens and of the image loss over target images (two scalars, fp32)."""
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
        return [
            model.image(
                hidden[0],
                time[where],
                Place(place.row[where], place.start[where], place.grid),
                tuple(kept[where] for kept in own),
            )
            for time, where, place, own in zip(times, targets, places, skips, strict=True)
        ]

    image_losses = flatten_losses(objective.loss(predict, x_0, t, noise), batch.ids.device)
    return sum_text_loss(model, hidden[0], batch), touch(image_losses.sum(), model, batch)


def sum_text_loss(model: MonoFormer, hidden: Tensor, batch: Batch) -> Tensor:
    """Sum of the cross-entropy (nats, fp32) over the labelled tokens of hidden states (B, T, D)."""
    labelled = batch.labels != IGNORED
    logits = model.text(hidden[labelled]).float()
    return F.cross_entropy(logits, batch.labels[labelled], reduction="sum")


def touch(loss: Tensor, model: MonoFormer, batch: Batch) -> Tensor:
    """The same loss, with a gradient of 0 for what a pass without images, or without an encoder's, leaves alone.

    Every parameter gets a gradient in every pass, or sharded training would hang.
    """
    idle = [] if batch.images else model.image_parameters()
    if model.vision is not None and not batch.vision:
        idle += model.vision.parameters()
    return loss + 0.0 * torch.stack([p.sum() for p in idle]).sum() if idle else loss


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
