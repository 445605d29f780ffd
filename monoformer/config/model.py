"""The network's shape: everything needed to build it, nothing about how it is trained."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One LLaMA-style transformer with an image door at each end (MonoFormer, section 3)."""

    width: int = 256
    """Width D of the residual stream."""
    layers: int = 6
    """Number of transformer blocks."""
    heads: int = 4
    """Number H of query heads; width / heads is the head width K and must be even."""
    kv_heads: int = 4
    """Number of key and value heads (grouped-query attention); divides heads."""
    mlp_width: int = 704
    """Inner width of the SwiGLU feed-forward layer."""
    vocabulary: int = 0
    """Rows of the token embedding. 0: taken from the tokenizer when a run starts."""
    context: int = 1024
    """Longest sequence in tokens that the model is trained on and will accept."""
    rope_theta: float = 10_000.0
    """Base of the rotary position frequencies."""
    norm_epsilon: float = 1e-5
    """Epsilon of every RMSNorm."""
    qk_norm: bool = True
    """RMSNorm on queries and keys of every head before the rotation."""
    tie_embeddings: bool = False
    """Whether the text head shares the token embedding's matrix."""
    patch: int = 8
    """Side p of a square patch of the latent: one image token."""
    channels: int = 3
    """Channels C of the latent (3 when images are drawn in pixels)."""
    down: int = 1
    """Pixels along the side of one cell of the latent (1 when images are drawn in pixels)."""
    time: Literal["token", "add", "adaln"] = "adaln"
    """How the time enters: a token before the patches, a vector added to every patch, or modulation of every layer."""
    image_head: Literal["linear", "dit"] = "dit"
    """What turns hidden states into patches: norm and linear, or DiT's final layer, which is modulated by the time."""
    image_attention: Literal["two-way", "causal"] = "two-way"
    """Whether tokens of one image see each other in both directions (both papers) or causally (their ablation)."""
    image_sizes: tuple[tuple[int, int], ...] = ((64, 64),)
    """Heights and widths in pixels that the model is trained to draw; the first is the default."""

    def __post_init__(self) -> None:
        for name in ("width", "heads", "kv_heads", "layers", "mlp_width", "context", "patch", "channels", "down"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be at least 1, but is {getattr(self, name)}")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(
                f"model.width / model.heads must be an even whole number, but {self.width} / {self.heads} is not; "
                f"try heads = {max(1, self.width // 64)}"
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"model.kv_heads must divide model.heads, but {self.kv_heads} does not divide {self.heads}"
            )
        if self.width % 4:
            raise ValueError(f"model.width must be divisible by 4 for 2-D positions, but is {self.width}")
        if not self.image_sizes:
            raise ValueError("model.image_sizes is empty; give at least one height and width, such as 64 64")
        for height, width in self.image_sizes:
            if min(height, width) < 1 or height % self.cell or width % self.cell:
                raise ValueError(
                    f"model.image_sizes holds {height}x{width}, which does not divide into patches of {self.cell} "
                    f"pixels; choose multiples of {self.cell}"
                )

    @property
    def cell(self) -> int:
        """Side in pixels of what one image token shows."""
        return self.patch * self.down

    @property
    def head_width(self) -> int:
        """Width K of one attention head."""
        return self.width // self.heads
