"""The variational bound of a DDPM chain: what trains a learned variance (improved DDPM, arXiv 2102.09672).

Knows predictions only as the clean image that they imply. Numbers are means over an image, in bits. Tables are fp64,
arithmetic fp32.
"""

import math

import torch
from torch import Tensor

from monoformer.diffusion.schedules import expand, gather


class Posterior:
    """q(x_{t-1} | x_t, x_0) of a chain: its mean, and the logarithms of the two bounds of a step's variance."""

    def __init__(self, alpha_bar: Tensor) -> None:
        """alpha_bar (steps,) fp64; before index 0 lies the clean image."""
        before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
        beta = 1 - alpha_bar / before
        small = beta * (1 - before) / (1 - alpha_bar)
        small[0] = small[1]  # the step to the clean image has variance 0, which has no logarithm
        self.log_small, self.log_large = small.log(), beta.log()
        self.of_x_0 = beta * before.sqrt() / (1 - alpha_bar)
        self.of_x_t = (1 - before) * (1 - beta).sqrt() / (1 - alpha_bar)

    def mean(self, x_0: Tensor, x_t: Tensor, index: Tensor) -> Tensor:
        """Mean of the step back from x_t (N, C, h, w) at index (N,) (DDPM, equation 7)."""
        return expand(gather(self.of_x_0, index), x_0) * x_0 + expand(gather(self.of_x_t, index), x_t) * x_t

    def log_variance(self, fraction: Tensor, index: Tensor) -> Tensor:
        """Interpolated between the bounds at index (N,): fraction 0 is the lower one (improved DDPM, equation 15)."""
        small, large = (expand(gather(bound, index), fraction) for bound in (self.log_small, self.log_large))
        return small + fraction * (large - small)

    def bound(self, x_0: Tensor, x_t: Tensor, index: Tensor, *, guess: Tensor, fraction: Tensor) -> Tensor:
        """The chain's term of the bound at index (N,), for an estimated x_0 and variance: (N,) bits a number.

        KL divergence from the true posterior; at index 0, the decoder's negative log-likelihood of the image.
        """
        mean, log_variance = self.mean(guess, x_t, index), self.log_variance(fraction, index)
        truth = self.mean(x_0, x_t, index), expand(gather(self.log_small, index), x_0)
        terms = gaussian_kl(*truth, mean, log_variance)
        decoder = -log_likelihood(x_0, mean, log_variance)
        return torch.where(index == 0, decoder.flatten(1).mean(1), terms.flatten(1).mean(1)) / math.log(2)


def gaussian_kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """KL divergence of a normal distribution from another, in nats, for each number."""
    apart = (mean - other_mean).square() * torch.exp(-other_log_variance)
    return 0.5 * (apart + torch.exp(log_variance - other_log_variance) - 1 + other_log_variance - log_variance)


def log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log-probability, in nats, that a normal number falls into the same of 256 bins over [-1, 1] as x.

    The outermost bins reach to infinity (DDPM, equation 13), so it holds for latents too.
    """
    scale = torch.exp(-0.5 * log_variance)
    above = normal_share((x - mean + 1 / 255) * scale)
    below = normal_share((x - mean - 1 / 255) * scale)
    inside = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return inside.clamp(min=1e-12).log()


def normal_share(z: Tensor) -> Tensor:
    """Share of a standard normal distribution below z, by the tanh formula of Page (1977), off by at most 0.0002.

    The papers' losses use it; with the exact one, the terms at index 0 would differ by a thousandth.
    """
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
