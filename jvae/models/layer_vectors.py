"""Pools each layer of a bidirectional stack into one vector per example."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jvae.api import Params, Side
from jvae.models.reading import states
from jvae.nn import pool
from jvae.nn.attention import MaskSpec, segments
from jvae.nn.backbone import Stack
from jvae.nn.stack import layer_range


def layer_vectors(
    stack: Stack,
    params: Params,
    side: Side,
    slots: int,
    query_gd: Float[Array, "g d"] | None,
    *,
    masked: bool,
    first: int,
    groups: int,
    drop: Key[Array, ""] | None = None,
    all_layers: bool = False,
) -> tuple[Float[Array, "g e d"], Float[Array, "b t d"]]:
    """Pooled outputs of layers first..first+groups-1, before any norm, and the last states.

    Layers above run only if `all_layers` is set; the states are those after the last layer run.

    Args:
      params: parameters of the stack.
      query_gd: query vectors for attention pooling; None takes the first token's state.
      masked: False pools whole rows, including padding, which is then encoded at its own position
        and attends to the text; needs one example per row.

    Raises: ValueError for unmasked pooling with more than one example per row.
    """
    if not masked and slots > 1:
        raise ValueError(
            "pool attn_unmasked reads whole rows, so it needs one sentence per row; set "
            "data.packing=bucket or pool=attn_masked"
        )
    rows, length = side.token_bt.shape
    mask_spec = segments(side, causal=False)
    if not masked:
        position_bt = jnp.broadcast_to(jnp.arange(length)[None], (rows, length))
        real_bt = (side.segment_bt > 0).astype(jnp.int32)
        mask_spec = MaskSpec(jnp.ones_like(real_bt), real_bt, False, position_bt)
    read_side = side if masked else side._replace(position_bt=mask_spec.position_bt)

    def read(x_btd: Array, y_btd: Array, query_d: Array | None) -> Array:
        del x_btd
        if query_d is None:
            return pool.first_token(y_btd, side, slots)
        if masked:
            return pool.attention(y_btd, query_d, side, slots)
        return pool.attention_unmasked(y_btd, query_d)

    query_ld = None if query_gd is None else jnp.pad(query_gd, ((first, 0), (0, 0)))
    if all_layers and query_ld is not None:
        query_ld = jnp.pad(query_ld, ((0, stack.config.layers - first - groups), (0, 0)))
    if not all_layers and first + groups < stack.config.layers:
        params = params | {"layers": layer_range(params["layers"], 0, first + groups)}
    x_btd, x_led = states(
        stack, params, read_side, drop, mask_spec=mask_spec, read=read, read_l=query_ld
    )
    return x_led[first : first + groups], x_btd
