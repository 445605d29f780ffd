"""The network's shape: everything needed to build it, nothing about how it is trained."""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from monoformer.config.bounds import check_numbers


@dataclass(frozen=True, kw_only=True)
class NoScaling:
    """Rotary frequencies as they are."""


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Every rotary frequency divided by one factor (position interpolation, arXiv 2306.15595)."""

    factor: float = 1.0
    """What the frequencies are divided by."""

    def __post_init__(self) -> None:
        check_numbers(self, "factor", room="rope_scaling", least=1)


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1: slow frequencies divided by a factor, fast ones kept, a ramp between them."""

    factor: float = 8.0
    """What the slow frequencies are divided by."""
    low: float = 1.0
    """Frequencies with fewer turns than this over the original context are slow."""
    high: float = 4.0
    """Frequencies with more turns than this over the original context are fast."""
    original_context: int = 8192
    """Context in tokens before the scaling."""

    def __post_init__(self) -> None:
        check_numbers(self, "factor", room="rope_scaling", least=1)
        if not 0 < self.low < self.high or self.original_context < 1:
            raise ValueError(
                f"rope_scaling needs 0 < low < high and original_context of 1 or more, but has "
                f"{self.low}, {self.high} and {self.original_context}"
            )


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071): a ramp over the frequencies' numbers, and attention made sharper."""

    factor: float = 4.0
    """What the slow frequencies are divided by."""
    beta_fast: float = 32.0
    """Turns over the original context from which a frequency is kept."""
    beta_slow: float = 1.0
    """Turns over the original context below which a frequency is wholly divided."""
    original_context: int = 4096
    """Context in tokens before the scaling."""
    attention_factor: float = 1.0
    """What cosines and sines are multiplied by."""
    truncate: bool = True
    """Whether the ramp's ends are rounded to whole numbers."""

    def __post_init__(self) -> None:
        check_numbers(self, "factor", room="rope_scaling", least=1)
        check_numbers(self, "attention_factor", room="rope_scaling", above=0)
        if not 0 < self.beta_slow < self.beta_fast or self.original_context < 1:
            raise ValueError(
                f"rope_scaling needs 0 < beta_slow < beta_fast and original_context of 1 or more, but has "
                f"{self.beta_slow}, {self.beta_fast} and {self.original_context}"
            )


RopeScaling: TypeAlias = NoScaling | LinearScaling | Llama3Scaling | YarnScaling


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One LLaMA-style transformer with an image door at each end (MonoFormer, section 3)."""

    width: int = 256
    """Width D of the residual stream."""
    layers: int = 6
    """Number of transformer blocks."""
    heads: int = 4
    """Number H of query heads."""
    kv_heads: int = 4
    """Number of key and value heads (grouped-query attention); divides heads."""
    key_width: int = 0
    """Width K of one query, key or value head, an even number; 0: width / heads."""
    mlp_width: int = 704
    """Inner width of the SwiGLU feed-forward layer."""
    vocabulary: int = 0
    """Rows of the token embedding. 0: taken from the tokenizer when a run starts."""
    context: int = 1024
    """Longest sequence in tokens that the model is trained on and will accept."""
    rope_theta: float = 10_000.0
    """Base of the rotary position frequencies."""
    rope_scaling: RopeScaling = field(default_factory=NoScaling)
    """How a pretrained language model stretched its rotary frequencies to a longer context."""
    norm_epsilon: float = 1e-5
    """Epsilon of every RMSNorm."""
    qk_norm: bool = True
    """RMSNorm on queries and keys of every head before the rotation."""
    attention_bias: Literal["none", "qkv", "all"] = "none"
    """Which projections of attention have biases: queries, keys and values (Qwen2), or the output as well."""
    tie_embeddings: bool = False
    """Whether the text head shares the token embedding's matrix."""
    patch: int = 8
    """Side p of a square patch of the latent: one image token."""
    channels: int = 3
    """Channels C of the latent (3 when images are drawn in pixels)."""
    down: int = 1
    """Pixels along the side of one cell of the latent (1 when images are drawn in pixels)."""
    time: Literal["token", "projected_token", "add", "adaln", "adaln_input"] = "adaln"
    """How the time enters: a token before the patches (its embedding, or a projection of it as in the official code), a
    vector added to every patch, modulation of every layer, or of the patches once as they enter the first."""
    image_positions: Literal["sincos", "every_layer", "none"] = "sincos"
    """Fixed 2-D positions of the patches: added as they enter the first layer, before every layer again, or not."""
    image_patches: Literal["linear", "unet"] = "linear"
    """How latents become tokens and hidden tokens predictions: one linear layer a patch, or the halves of a U-Net of
    log2(patch) steps down, whose residual blocks see the time (Transfusion)."""
    unet_width: int = 0
    """Channels of the U-Net at the latent's resolution, a multiple of 4; twice that at every coarser level."""
    experts: Literal["shared", "modality"] = "shared"
    """Whether image tokens pass through the text tokens' weights, or through projections, MLPs and norms of their own
    under the same attention (LMFusion, arXiv 2412.15188)."""
    text_vocabulary: int = 0
    """Rows of the token embedding that a text model had before its vocabulary grew; 0: the vocabulary did not grow.
    `train.freeze = text` keeps these rows, but for the image tokens among them."""
    vision_width: int = 0
    """Width of the features of a vision encoder that context images are read by, projected by a two-layer MLP; 0: taken
    from `vision.path` when a run starts, or no such encoder."""
    vision_grid: tuple[int, int] = (0, 0)
    """Features down and across that the encoder makes of any picture: as many tokens; with `vision_width`."""
    image_head: Literal["linear", "dit", "shift"] = "dit"
    """What turns hidden states into patches, or into what a U-Net decodes: norm and linear; DiT's final layer, which
    is modulated by the time; or linear alone on hidden states to which a vector of the time is added."""
    learned_variance: bool = False
    """Whether the image head returns 2 C channels: the prediction, and where the variance of a step lies between its
    bounds (DDPM with learned variance)."""
    image_attention: Literal["two-way", "causal"] = "two-way"
    """Whether tokens of one image see each other in both directions (both papers) or causally (their ablation)."""
    image_sizes: tuple[tuple[int, int], ...] = ((64, 64),)
    """Heights and widths in pixels that the model is trained to draw; the first is the default."""

    def __post_init__(self) -> None:
        sizes = ("width", "heads", "kv_heads", "layers", "mlp_width", "context", "patch", "channels", "down")
        check_numbers(self, *sizes, room="model", least=1)
        check_numbers(self, "rope_theta", "norm_epsilon", room="model", above=0)
        if self.key_width < 0 or self.key_width % 2:
            raise ValueError(f"model.key_width must be even, or 0 for width / heads, but is {self.key_width}")
        if not self.key_width and (self.width % self.heads or (self.width // self.heads) % 2):
            raise ValueError(
                f"model.width / model.heads must be an even whole number, but {self.width} / {self.heads} is not; "
                f"try heads = {max(1, self.width // 64)}"
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"model.kv_heads must divide model.heads, but {self.kv_heads} does not divide {self.heads}"
            )
        if not 0 <= self.text_vocabulary <= self.vocabulary:
            raise ValueError(
                f"model.text_vocabulary must be between 0 and model.vocabulary, but is {self.text_vocabulary} of "
                f"{self.vocabulary}"
            )
        self._check_patches()
        sides = (self.vision_width, *self.vision_grid)
        if min(sides) < 0 or (max(sides) and not min(sides)):
            raise ValueError(
                f"model.vision_width and model.vision_grid are all 0 or all above it, but are {self.vision_width} and "
                f"{self.vision_grid}; leave them 0, and they are those of --vision.path"
            )
        if self.image_positions != "none" and self.width % 4:
            raise ValueError(f"model.width must be divisible by 4 for 2-D positions, but is {self.width}")
        self._check_image_sizes()

    def _check_image_sizes(self) -> None:
        if not self.image_sizes:
            raise ValueError("model.image_sizes is empty; give at least one height and width, such as 64 64")
        if len(set(self.image_sizes)) < len(self.image_sizes):
            raise ValueError(f"model.image_sizes must name each size once, but is {self.image_sizes}")
        for height, width in self.image_sizes:
            if min(height, width) < 1 or height % self.cell or width % self.cell:
                raise ValueError(
                    f"model.image_sizes holds {height}x{width}, which does not divide into patches of {self.cell} "
                    f"pixels; choose multiples of {self.cell}"
                )
            tokens = (height // self.cell) * (width // self.cell) + 2 + self.has_time_token  # boi, eoi
            if tokens > self.context:
                raise ValueError(
                    f"model.image_sizes holds {height}x{width}, {tokens} tokens, more than model.context = "
                    f"{self.context}; raise --model.context or --model.patch"
                )

    def _check_patches(self) -> None:
        unet = self.image_patches == "unet"
        if unet and (self.patch < 2 or self.patch & (self.patch - 1)):
            raise ValueError(f"model.patch must be 2, 4, 8, ... for a U-Net, which halves, but is {self.patch}")
        if unet and (self.unet_width < 4 or self.unet_width % 4):
            raise ValueError(f"model.unet_width must be a multiple of 4 above 0, but is {self.unet_width}")
        if not unet and self.unet_width:
            raise ValueError(
                f"model.unet_width = {self.unet_width} has no effect with linear patches; add "
                f"--model.image-patches unet, or leave it 0"
            )

    @property
    def cell(self) -> int:
        """Side in pixels of what one image token shows."""
        return self.patch * self.down

    @property
    def head_width(self) -> int:
        """Width K of one attention head."""
        return self.key_width or self.width // self.heads

    @property
    def has_time_token(self) -> bool:
        """Whether a token that tells the time precedes the patches of every image."""
        return self.time in ("token", "projected_token")

    @property
    def predicted_channels(self) -> int:
        """Channels of what the image head returns: those of the latent, twice as many with learned variance."""
        return 2 * self.channels if self.learned_variance else self.channels
