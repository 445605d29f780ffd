"""The likelihoods of given answers: all of them behind one cached prompt, in one pass that writes nothing.

The answers stand side by side in one row, at the same rotary positions and private from each other: the rule that
hides noised images (DESIGN 1). Invariant: each one's likelihood is what it would be alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from monoformer.generate.network import Network
from monoformer.generate.passes import Context, side_by_side


@torch.no_grad()
def likelihoods(network: Network, context: Context, hidden: Tensor, answers: Sequence[Sequence[int]]) -> Tensor:
    """Log-likelihood (N,) of N token sequences after the context, whose last token's hidden state (D,) is given.

    In fp64, on the CPU.
    """
    branches = [list(answer[:-1]) for answer in answers]
    states = side_by_side(network, context, branches)  # (sum of lengths, D), branch after branch
    parts = states.split([len(branch) for branch in branches])
    before = torch.cat([torch.cat([hidden[None], part]) for part in parts])  # what predicts each token
    owner = [number for number, answer in enumerate(answers) for _ in answer]
    tokens = torch.tensor([token for answer in answers for token in answer], device=hidden.device)
    logs = network.model.text(before).float().log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0].cpu().double()
    return torch.zeros(len(answers), dtype=torch.float64).index_add(0, torch.tensor(owner), logs)


def choose_answer(likelihood: Tensor, *, temperature: float, generator: torch.Generator) -> int:
    """The likeliest of N answers, or at a temperature one of them drawn by likelihood; -1 for broken numbers."""
    likelihood = likelihood.cpu()
    if not bool(likelihood.isfinite().all()):
        return -1
    if temperature == 0:
        return int(likelihood.argmax())
    scores = (likelihood - likelihood.max()) / temperature  # at most 0, however low the temperature
    return int(torch.multinomial(scores.softmax(dim=0), 1, generator=generator))
