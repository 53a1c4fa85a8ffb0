"""One vector per example from each layer of a GPT-2 that reads in both directions."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jvae.api import Side
from jvae.nn import gpt2, pool
from jvae.nn.attention import MaskSpec, segments
from jvae.nn.config import TransformerConfig
from jvae.nn.stack import layer_range


def layer_vectors(
    config: TransformerConfig,
    decoder: Any,
    side: Side,
    slots: int,
    query_gd: Float[Array, "g d"] | None,
    *,
    masked: bool,
    first: int,
    groups: int,
    drop: Key[Array, ""] | None = None,
) -> Float[Array, "g e d"]:
    """Pooled outputs of layers first..first+groups-1, before any norm; layers above are not run.

    Args:
      decoder: parameters of `gpt2`.
      query_gd: attention pooling by these vectors; None takes the first token's state.
      masked: False pools whole rows, padding too, which is then encoded at its own position and
        sees the text; one example per row.

    Raises: ValueError for unmasked pooling with more than one example per row.
    """
    if not masked and slots > 1:
        raise ValueError(
            "pool attn_unmasked reads whole rows, so it needs one sentence per row; set "
            "data.packing=bucket or pool=attn_masked"
        )
    rows, length = side.token_bt.shape
    if masked:
        position_bt, mask_spec = side.position_bt, segments(side, causal=False)
    else:
        position_bt = jnp.broadcast_to(jnp.arange(length)[None], (rows, length))
        real_bt = (side.segment_bt > 0).astype(jnp.int32)
        mask_spec = MaskSpec(jnp.ones_like(real_bt), real_bt, causal=False)

    def read(x_btd: Array, query_d: Array | None) -> Array:
        if query_d is None:
            return pool.first_token(x_btd, side, slots)
        if masked:
            return pool.attention(x_btd, query_d, side, slots)
        return pool.attention_unmasked(x_btd, query_d)

    query_ld = None if query_gd is None else jnp.pad(query_gd, ((first, 0), (0, 0)))
    if first + groups < config.layers:
        decoder = decoder | {"layers": layer_range(decoder["layers"], 0, first + groups)}
    x_btd = gpt2.embed(config, decoder, side.token_bt, position_bt)
    _, x_led = gpt2.encode(config, decoder, x_btd, mask_spec, read, query_ld, drop)
    return x_led[first:]
