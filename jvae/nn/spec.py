"""Static description of a stack of transformer layers.

A backbone derives a `StackSpec` from its config. `jvae.nn.block` builds a layer from it,
`jvae.nn.transformer` the passes through all layers. Architectures differ only in these fields.
"""

from dataclasses import dataclass

from jvae.nn.rotary import Rotary

NORMS = ("layer", "rms", "rms_plus_one")
RESIDUALS = ("pre", "post", "parallel", "sandwich")


@dataclass(frozen=True)
class LayerKind:
    """Properties that may differ between layers of a stack: rotary frequencies and window.

    reach: maximum distance between query and key within a segment; None for no bound.
    """

    rotary: Rotary | None = None
    reach: int | None = None


@dataclass(frozen=True)
class StackSpec:
    """One stack. Sizes count features, tokens or heads.

    residual: "pre" normalises the input of each sub-layer, "post" the sum after it, "sandwich" both
      input and output of each sub-layer; "parallel" feeds attention and feed-forward the same
      input and adds both outputs.
    kinds, pattern: the kinds of layer, and the kind of each layer; empty means kind 0 throughout.
    positions: rows of a learned position table, 0 for none.
    position_offset: number of unused rows of that table before position 0.
    scale: factor of the attention logits; None for head ** -0.5.
    logit_cap, score_cap: bounds c of a soft cap c * tanh(x / c) on attention logits and on output
      scores; None for no cap.
    cross: whether layers attend to external states, after their self-attention.
    own_head_std: initial standard deviation of an untied output head; None for uniform within
      +-width ** -0.5.
    first_norm: whether layer 0 normalises the input of its attention.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head: int
    mlp: int
    vocab: int
    vocab_padded: int
    norm: str = "layer"
    norm_bias: bool = True
    norm_eps: float = 1e-5
    residual: str = "pre"
    embed_norm: bool = False
    final_norm: bool = True
    first_norm: bool = True
    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    head_norm: bool = False  # normalise queries and keys per head
    activation: str = "gelu"
    gated: bool = False
    fused_gate: bool = False  # gate and gated projection are fused into one parameter, "both"
    cross: bool = False
    positions: int = 0
    position_offset: int = 0
    types: int = 0  # number of token types, as for sentence pairs
    kinds: tuple[LayerKind, ...] = (LayerKind(),)
    pattern: tuple[int, ...] = ()
    scale: float | None = None
    logit_cap: float | None = None
    score_cap: float | None = None
    embed_scale: float = 1.0
    own_head: bool = False
    own_head_std: float | None = None
    init_std: float = 0.02
    dropout: float = 0.0
    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1
    attention: str = "xla"
    xent_chunk: int = 8192

    @property
    def fused(self) -> bool:
        """Whether queries, keys and values share one projection, which needs equal head counts."""
        return self.heads == self.kv_heads
