"""Pools a text into several vectors: learned queries attend once to the states of its segment.

Source: Jaegle et al. 2021 (Perceiver), arXiv 2103.03206. This is one attention layer with its own
norm and no feed-forward. Queries do not depend on the text, so they are learned per head.

Axis letters are those of `jvae.api`, plus Q for queries.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jvae.api import Side
from jvae.nn.attention import own_slot
from jvae.nn.layers import Projection, accum_dtype
from jvae.nn.norms import LayerNorm

NORM_EPS = 1e-5


class Resampler(nn.Module):
    """`vectors` vectors per example, as wide as the states; zeros at empty slots."""

    vectors: int
    heads: int

    @nn.compact
    def __call__(
        self, x_btd: Float[Array, "b t d"], side: Side, slots: int
    ) -> Float[Array, "e q d"]:
        width = x_btd.shape[-1]
        heads, head = self.heads, max(width // self.heads, 1)
        # Initial logits have variance 1, so that the queries differ from the first step on.
        start, split = nn.initializers.normal(width**-0.5), ("heads", "head")
        named = nn.with_logical_partitioning(nn.initializers.normal(1.0), (None, *split))
        query_qnh: Any = self.param("query", named, (self.vectors, heads, head))
        normed_btd = LayerNorm(NORM_EPS, name="norm")(x_btd)

        def project(name: str) -> Array:
            layer = Projection((heads, head), ("embed",), split, False, start, name=name)
            return layer(normed_btd)

        acc = accum_dtype(x_btd.dtype)
        key_btnh, value_btnh = project("key"), project("value")
        logit_bqnt = jnp.einsum("qnh,btnh->bqnt", query_qnh.astype(acc), key_btnh.astype(acc))
        # A token belongs to one segment, so logits are shared and only the softmax is per segment.
        own_bst = jnp.moveaxis(own_slot(side, slots), 2, 1)[:, :, None, None]
        logit_bsqnt = jnp.where(own_bst, logit_bqnt[:, None] * head**-0.5, jnp.finfo(acc).min)
        weight_bsqnt = jax.nn.softmax(logit_bsqnt, axis=-1) * own_bst
        mixed_bsqnh = jnp.einsum("bsqnt,btnh->bsqnh", weight_bsqnt, value_btnh.astype(acc))
        mixed_eqnh = mixed_bsqnh.reshape(-1, self.vectors, heads, head).astype(x_btd.dtype)
        return Projection((width,), split, ("embed",), False, start, name="out")(mixed_eqnh)
