"""What a transformer stack is made of."""

from dataclasses import dataclass

from jvae.nn.fused import KERNELS


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and compute choices of one stack; all widths in units of features, all lengths in
    tokens.

    `vocab` counts real tokens; parameters hold `vocab_padded` rows so that the vocabulary divides
    over a mesh. `remat` is "none", "dots" (keep matrix products) or "full"; `unroll` is how many
    layers of the scan are laid out in a row. `attention` is "xla", "cudnn" or "splash"; see
    `jvae.nn.fused`.
    """

    layers: int
    width: int
    heads: int
    mlp: int
    vocab: int
    positions: int
    dropout: float = 0.1
    norm_eps: float = 1e-5
    init_std: float = 0.02  # of every kernel and table; as BERT and GPT-2
    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1
    attention: str = "xla"
    vocab_multiple: int = 128
    xent_chunk: int = 8192

    def __post_init__(self) -> None:
        if self.attention not in ("xla", *KERNELS):
            raise ValueError(
                f"attention is {self.attention!r}; expected one of xla, {', '.join(KERNELS)}"
            )
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads")

    @property
    def head(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @property
    def vocab_padded(self) -> int:
        """Rows of the token embedding."""
        return -(-self.vocab // self.vocab_multiple) * self.vocab_multiple
