"""Config of a transformer stack."""

from dataclasses import dataclass
from typing import Any

from jvae.fields import MOST, setting
from jvae.nn.backbone import StackConfig
from jvae.nn.fused import KERNELS
from jvae.nn.stack import REMAT

# Fields of a section that concern training and computation. All others are architecture sizes,
# which pretrained weights determine.
CHOICES = (
    *("dropout", "init_std", "init_scale", "bias_std", "dtype", "attention", "remat", "unroll"),
    *("vocab_multiple", "xent_chunk"),
)
DTYPES = ("float32", "bfloat16", "float16")

# Fields of every stack, regardless of its layers.
LAYERS: dict[str, Any] = dict(low=1, high=4_096, help="Number of layers.")
WIDTH: dict[str, Any] = dict(low=1, high=2**17, help="Width of the residual stream.")
HEADS: dict[str, Any] = dict(low=1, high=4_096, help="Number of attention heads.")
MLP: dict[str, Any] = dict(low=1, high=2**20, help="Hidden width of the feed-forward.")
VOCAB: dict[str, Any] = dict(low=0, high=MOST, help="Vocabulary size; 0: that of the tokenizer.")
DROPOUT: dict[str, Any] = dict(low=0.0, below=1.0, help="Share of features dropped in training.")
NORM_EPS: dict[str, Any] = dict(above=0.0, high=1.0, help="Added to the variance in norms.")
DTYPE: dict[str, Any] = dict(
    choices=DTYPES, help="Number type of activations; parameters are float32."
)
REMATS: dict[str, Any] = dict(
    choices=REMAT,
    help="What the backward pass recomputes: full: everything; dots: all but matrix products.",
)
ATTENTION: dict[str, Any] = dict(
    choices=("xla", *KERNELS),
    help="Kernel; fused: cudnn, triton (GPU), splash (TPU). Only xla and triton drop weights.",
)
UNROLL: dict[str, Any] = dict(low=1, high=4_096, help="Layers unrolled per iteration of the scan.")
VOCAB_MULTIPLE: dict[str, Any] = dict(
    low=1, high=2**16, help="Pad embedding rows to a multiple of this, to shard them over a mesh."
)
XENT_CHUNK: dict[str, Any] = dict(
    low=1, high=MOST, help="Number of vocabulary columns whose logits are computed at a time."
)
LATENT: dict[str, Any] = dict(low=1, high=2**20, help="Width of z.")
VECTORS: dict[str, Any] = dict(
    low=1,
    high=4_096,
    help="Latent vectors per text, each of width latent; above 1 needs pool=queries.",
)
LOG_VAR_SHIFT: dict[str, Any] = dict(
    low=-50.0,
    high=50.0,
    help="Added to the log-variance; a negative shift starts nearly deterministic.",
)


def padded(vocab: int, multiple: int) -> int:
    """Rows of an embedding: the vocabulary size, rounded up to a multiple."""
    return -(-vocab // multiple) * multiple


def check_kernel(config: Any) -> None:
    """Raises ValueError for an attention kernel that does not support the dtype or head width."""
    if config.attention == "cudnn" and config.dtype == "float32":
        raise ValueError("attention cudnn needs dtype bfloat16 or float16; dtype is float32")
    if config.attention == "triton" and config.head & (config.head - 1):
        raise ValueError(
            f"attention triton needs a head width that is a power of 2; head is {config.head}"
        )


def check_rotary(config: Any) -> None:
    """Raises ValueError for heads that cannot share keys and values or be rotated."""
    if config.heads % config.kv_heads:
        raise ValueError(f"{config.heads} heads do not divide into {config.kv_heads} kv_heads")
    if config.head % 2:
        raise ValueError(f"head is {config.head}; rotary positions need an even width")


def of_spec(config: Any) -> dict[str, Any]:
    """The fields of `jvae.nn.spec.StackSpec` that a config has under the same names."""
    names = ("layers", "width", "heads", "kv_heads", "head", "mlp", "vocab", "vocab_padded")
    names += ("norm_eps", "init_std", "dropout", "dtype", "remat", "unroll", "attention")
    return {name: getattr(config, name) for name in (*names, "xent_chunk")}


@dataclass(frozen=True)
class TransformerConfig(StackConfig):
    """Sizes and compute choices of one stack. Widths are in features, lengths in tokens.

    `vocab` counts real tokens; parameters have `vocab_padded` rows so that the vocabulary can be
    sharded evenly over a mesh.
    """

    layers: int = setting(**LAYERS)
    width: int = setting(**WIDTH)
    heads: int = setting(**HEADS)
    mlp: int = setting(**MLP)
    vocab: int = setting(**VOCAB)
    positions: int = setting(low=1, high=2**24, help="Maximum tokens of a text.")
    dropout: float = setting(0.1, **DROPOUT)
    norm_eps: float = setting(1e-5, **NORM_EPS)
    init_std: float = setting(
        0.02,
        low=0.0,
        high=10.0,
        help="Standard deviation of initial kernels and embeddings, as in BERT and GPT-2.",
    )
    dtype: str = setting("float32", **DTYPE)
    remat: str = setting("none", **REMATS)
    unroll: int = setting(1, **UNROLL)
    attention: str = setting("xla", **ATTENTION)
    vocab_multiple: int = setting(128, **VOCAB_MULTIPLE)
    xent_chunk: int = setting(8192, **XENT_CHUNK)

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads")
        check_kernel(self)

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads, equal to the number of query heads."""
        return self.heads

    @property
    def head(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @property
    def vocab_padded(self) -> int:
        """Rows of the token embedding."""
        return padded(self.vocab, self.vocab_multiple)
