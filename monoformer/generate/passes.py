"""One network pass over cached contexts: reading tokens into the cache, and denoising against it.

Many contexts of different lengths share a pass; padding is neither stored nor seen. Knows nothing of requests.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from monoformer.batch import Layout
from monoformer.diffusion.objectives import Estimate
from monoformer.generate.buckets import CPU_TOKENS, rounded, similar
from monoformer.generate.network import Network
from monoformer.model.attention import CacheView
from monoformer.model.decoding import Decoder
from monoformer.model.monoformer import Place
from monoformer.model.unet import Skips
from monoformer.packing import group_blocks

Row = TypeVar("Row")
Result = TypeVar("Result")


@dataclass
class Context:
    """What one slot of the cache holds."""

    slot: int
    length: int = 0
    """Tokens in the cache."""
    position: int = 0
    """Rotary position of the next token: `length`, for what is read here shares no positions."""

    def following(self, token: int) -> Layout:
        """One token that comes next."""
        layout = Layout(next_position=self.position)
        layout.add_token(token)
        return layout


@torch.no_grad()
def read(network: Network, contexts: Sequence[Context], layouts: Sequence[Layout]) -> Tensor:
    """Read each layout into its context's cache, clean; the last token's hidden state (B, D)."""
    hidden = read_states(network, contexts, layouts)
    last = torch.tensor([len(layout) - 1 for layout in layouts], device=hidden.device)
    return hidden[torch.arange(len(layouts), device=hidden.device), last]


@torch.no_grad()
def read_states(network: Network, contexts: Sequence[Context], layouts: Sequence[Layout]) -> Tensor:
    """The same, but the hidden states (B, T, D) of all tokens; those of the shorter layouts end with padding."""
    states = _read_groups(network, contexts, layouts)
    for context, layout in zip(contexts, layouts, strict=True):  # only now: where a pass fails, none has moved on
        context.length += len(layout)
        context.position = layout.next_position
    return states


def _read_groups(network: Network, contexts: Sequence[Context], layouts: Sequence[Layout]) -> Tensor:
    """The passes that this takes."""
    buckets, lengths = network.buckets, [len(layout) for layout in layouts]
    if buckets is None:
        groups = similar(lengths) if network.device.type == "cpu" else [list(range(len(lengths)))]
        if len(groups) == 1:
            return _read(network, contexts, layouts, width=max(lengths), span=max(c.length for c in contexts))
    else:
        groups = buckets.groups(
            [  # who has pictures reads alone
                (rounded(len(layout)), _span(network, context), row if layout.blocks else -1)
                for row, (context, layout) in enumerate(zip(contexts, layouts, strict=True))
            ],
            most=buckets.rows,
        )
    states = torch.zeros((len(layouts), max(lengths), network.model.config.width), device=network.device)
    for rows in groups:
        own, their = [contexts[row] for row in rows], [layouts[row] for row in rows]
        width, span = max(map(len, their)), max(context.length for context in own)
        if buckets is not None:
            empty = 0 if their[0].blocks else buckets.rows - len(rows)
            own, their = [*own, *(Context(0) for _ in range(empty))], [*their, *(Layout() for _ in range(empty))]
            width, span = rounded(width), _span(network, own[0])
        found = _read(network, own, their, width=width, span=span)
        states[rows, : min(width, max(lengths))] = found[: len(rows), : max(lengths)].to(states.dtype)
    return states.to(network.model.tokens.weight.dtype)


@torch.no_grad()
def text_logits(network: Network, hidden: Tensor) -> Tensor:
    """Logits (N, V) of hidden states (N, D), fp32."""
    if network.buckets is None:
        return network.model.text(hidden).float()
    parts = hidden.split(network.buckets.rows)
    padded = [torch.cat([part, part.new_zeros((network.buckets.rows - len(part), part.shape[1]))]) for part in parts]
    return torch.cat([network.model.text(x)[: len(x_)] for x, x_ in zip(padded, parts, strict=True)]).float()


def _read(network: Network, contexts: Sequence[Context], layouts: Sequence[Layout], *, width: int, span: int) -> Tensor:
    """One pass of `width` tokens over `span` cached ones."""
    device = network.device
    if network.decoder is not None and width == 1 and not any(layout.blocks for layout in layouts):
        return _read_next(network.decoder, contexts, layouts, span=span)
    ids = _padded([layout.ids for layout in layouts], width)
    positions = _padded([layout.positions for layout in layouts], width)
    end = _padded([layout.end for layout in layouts], width)
    blocks = [(block, row, 0, 0) for row, layout in enumerate(layouts) for block in layout.blocks]
    slots, looked_at = (
        [group.to(device) for group in group_blocks(blocks, by_encoder=by_encoder)] for by_encoder in (False, True)
    )
    clean = [network.autoencoder.encode(group.pixels)[group.picture] for group in slots]
    zero = torch.zeros((), device=device)
    times = [network.objective.path.network_time(zero.expand(len(x))) for x in clean]
    encoder = network.vision
    features = [] if encoder is None else [encoder.encode(group.pixels)[group.picture] for group in looked_at]
    view = _view(network, contexts, [len(layout) for layout in layouts], write=True, span=span)
    level = network.buckets is None and {context.length for context in contexts} == {span}
    hidden: Tensor = network.model(
        ids.to(device),
        positions.to(device),
        None if width == 1 and level else view.mask(end.to(device)),
        images=[x.to(network.model.tokens.weight.dtype) for x in clean],
        times=times,
        places=[Place.of(group) for group in slots],
        features=features,
        seen=[Place.of(group) for group in looked_at],
        view=view,
    )
    return hidden


def _read_next(decoder: Decoder, contexts: Sequence[Context], layouts: Sequence[Layout], *, span: int) -> Tensor:
    """The same for one token of text in each layout, but for empty ones at the end; (B, 1, D)."""
    pairs = [(context, layout) for context, layout in zip(contexts, layouts, strict=True) if len(layout)]
    hidden = decoder.read(
        [layout.ids[0] for _, layout in pairs],
        [layout.positions[0] for _, layout in pairs],
        [context.slot for context, _ in pairs],
        [context.length for context, _ in pairs],
        rows=len(layouts),
        span=span,
    )
    return hidden[:, None]


@torch.no_grad()
def side_by_side(network: Network, context: Context, branches: Sequence[list[int]]) -> Tensor:
    """Hidden states (sum of lengths, D) of texts that each continue the context alone; writes nothing."""
    row = Layout()
    for number, branch in enumerate(branches):
        row.next_position = context.position
        row.add_text(branch, private=number + 1)
    if not len(row):
        return network.model.tokens.weight.new_zeros((0, network.model.config.width))
    device = network.device
    view = _view(network, [context], [len(row)], write=False, span=context.length)
    ids, positions, end, private = (
        torch.tensor([values], device=device) for values in (row.ids, row.positions, row.end, row.private)
    )
    states: Tensor = network.model(ids, positions, view.mask(end, private), view=view)[0]
    return states


@torch.no_grad()
def denoise(
    network: Network, contexts: Sequence[Context], x: Tensor, t: Tensor, grid: tuple[int, int]
) -> list[Estimate]:
    """Estimates for noised latents x (B, C, h, w) at times t (B,), each behind its cached context; writes nothing.

    Only the image's own tokens run through the network: [time] patches, at the rotary positions after the context.
    """
    buckets = network.buckets
    order = sorted(range(len(contexts)), key=lambda row: contexts[row].length)  # equal lengths need no mask
    if buckets is None:
        most = len(order) if network.device.type != "cpu" else max(1, CPU_TOKENS // (grid[0] * grid[1]))
        groups = [order[first : first + most] for first in range(0, len(order), most)]
    else:
        groups = buckets.groups([_span(network, context) for context in contexts], most=buckets.pictures)
    found: dict[int, Estimate] = {}
    for rows in groups:
        padded = rows if buckets is None else rows + rows[:1] * (buckets.pictures - len(rows))
        estimates = _denoise(network, [contexts[row] for row in padded], x[padded], t[padded], grid)
        found |= dict(zip(rows, estimates, strict=False))
    return [found[row] for row in range(len(contexts))]


def _denoise(
    network: Network, contexts: Sequence[Context], x: Tensor, t: Tensor, grid: tuple[int, int]
) -> list[Estimate]:
    """One pass."""
    device, model = network.device, network.model
    first = int(model.config.has_time_token)
    tokens = grid[0] * grid[1] + first
    rows = len(contexts)
    positions = torch.tensor([c.position for c in contexts], device=device)[:, None] + torch.arange(
        tokens, device=device
    )
    place = Place(torch.arange(rows, device=device), torch.full((rows,), first, device=device), grid)
    two_way = model.config.image_attention == "two-way"
    lengths = {context.length for context in contexts}
    splits = two_way and network.buckets is None and (device.type == "cpu" or len(lengths) <= 2)
    span = max(lengths) if network.buckets is None else _span(network, contexts[0])
    view = _view(network, contexts, [tokens] * rows, write=False, span=span, image=first if splits else None)
    own = torch.arange(1, tokens + 1, device=device)
    if two_way:
        own[first:] = tokens
    time = network.objective.path.network_time(t)
    skips: list[Skips] = []
    hidden = model(
        torch.zeros((rows, tokens), dtype=torch.long, device=device),
        positions,
        None if splits else view.mask(own.expand(rows, -1)),
        images=[x.to(model.tokens.weight.dtype)],
        times=[time],
        places=[place],
        view=view,
        skips=skips,
    )
    prediction = model.image(hidden, time, place, skips[0])
    estimate = network.objective.estimate(prediction, x, t)
    fractions = [None] * rows if estimate.variance_fraction is None else list(estimate.variance_fraction)
    return list(map(Estimate, estimate.x_0, fractions))


def explained(error: Exception) -> str:
    """What went wrong, in words: some exceptions say nothing but their name."""
    return str(error).strip() or type(error).__name__


def guarded(run: Callable[..., Result], *arguments: Any) -> Result | Exception:
    """What `run` returns, or what it raised: one request's fault must not be its neighbours'."""
    try:
        return run(*arguments)
    except Exception as error:
        return error


def attempt(run: Callable[[Sequence[Row]], Sequence[Result]], rows: Sequence[Row]) -> list[Result | Exception]:
    """What `run` makes of all rows in one pass; where that fails, of each row alone, or what it raised."""
    found = guarded(run, rows) if rows else []
    if not isinstance(found, Exception):
        return [*found]
    return [found] if len(rows) == 1 else [result for row in rows for result in attempt(run, [row])]


def _span(network: Network, context: Context) -> int:
    """The bucket of a context's length."""
    return rounded(context.length, most=network.cache.keys.shape[3])


def _view(
    network: Network,
    contexts: Sequence[Context],
    counts: Sequence[int],
    *,
    write: bool,
    span: int,
    image: int | None = None,
) -> CacheView:
    return CacheView(
        cache=network.cache,
        slots=[context.slot for context in contexts],
        lengths=[context.length for context in contexts],
        counts=counts,
        span=span,
        write=write,
        image=image,
    )


def _padded(rows: list[list[int]], width: int) -> Tensor:
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])
