"""What a stack of transformer layers is made of, in one static description.

A backbone writes one `StackSpec` from its config; `jvae.nn.block` makes a layer of it and
`jvae.nn.transformer` the passes through all layers. Architectures differ in these fields alone.
"""

from dataclasses import dataclass

from jvae.nn.rotary import Rotary

NORMS = ("layer", "rms", "rms_plus_one")
RESIDUALS = ("pre", "post", "parallel", "sandwich")
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")


@dataclass(frozen=True)
class LayerKind:
    """What layers of one stack may differ in: rotary frequencies and how far they see.

    reach: the largest distance between query and key within a segment; None for no bound.
    """

    rotary: Rotary | None = None
    reach: int | None = None


@dataclass(frozen=True)
class StackSpec:
    """One stack. Sizes count features, tokens or heads.

    residual: "pre" norms the input of each sub-layer, "post" the sum behind it, "sandwich" both
    input and output of each sub-layer; "parallel" adds attention and feed-forward of one input.
    kinds, pattern: the kinds of layer and the kind of each layer; an empty pattern is all kind 0.
    positions: rows of a learned table, 0 for none; position_offset: rows in front of position 0.
    scale: of the attention logits; None for head ** -0.5. logit_cap, score_cap: bounds c of a soft
    cap c * tanh(x / c) on attention logits and on output scores; None for none.
    cross: whether layers attend to states beside the text, behind their self-attention.
    own_head_std: of an output head apart from the token embedding at the start; None for uniform
    within width ** -0.5. first_norm: whether layer 0 norms the input of its attention.
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
    head_norm: bool = False  # norms queries and keys per head
    activation: str = "gelu"
    gated: bool = False
    fused_gate: bool = False  # gate and gated projection are one parameter, "both"
    cross: bool = False
    positions: int = 0
    position_offset: int = 0
    types: int = 0  # token types, as in sentence pairs
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
        """Whether queries, keys and values are one projection: as many heads of each."""
        return self.heads == self.kv_heads
