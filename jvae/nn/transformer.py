"""One GPT-2 layer and one BERT layer.

A layer computes queries, keys and values and hands them to `attend(q, k, v) -> (mixed_btnh,
output)`. What a key may see, latent slots, caches and value fusion live in that function, so
teacher forcing, prefill and stepwise decoding share these weights.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Key

from jvae.nn.config import TransformerConfig
from jvae.nn.layers import LayerNorm, Projection, dropout, split_key

Attend = Callable[[Array, Array, Array], tuple[Array, Any]]


class SelfAttention(nn.Module):
    """Fused query, key and value projections with bias, and the output projection."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_btd: Array, attend: Attend) -> tuple[Array, Any]:
        c = self.config
        heads, init = (None, "heads", "head"), nn.initializers.normal(c.init_std)
        qkv = Projection((3, c.heads, c.head), ("embed",), heads, kernel_init=init, name="qkv")(
            x_btd
        )
        q, k, v = (qkv[..., i, :, :] for i in range(3))
        mixed_btnh, output = attend(q, k, v)
        out = Projection((c.width,), ("heads", "head"), ("embed",), kernel_init=init, name="out")
        return out(mixed_btnh), output


class Mlp(nn.Module):
    """Two projections around a GELU."""

    config: TransformerConfig
    tanh_gelu: bool

    @nn.compact
    def __call__(self, x_btd: Array) -> Array:
        c = self.config
        init = nn.initializers.normal(c.init_std)
        h = Projection((c.mlp,), ("embed",), ("mlp",), kernel_init=init, name="up")(x_btd)
        h = jax.nn.gelu(h, approximate=self.tanh_gelu)
        return Projection((c.width,), ("mlp",), ("embed",), kernel_init=init, name="down")(h)


class Gpt2Layer(nn.Module):
    """Pre-norm layer with tanh GELU. Source: Radford et al. 2019."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, x_btd: Array, attend: Attend, drop: Key[Array, ""] | None = None
    ) -> tuple[Array, Any]:
        c = self.config
        drop_attn, drop_mlp = split_key(drop, 2)
        h, output = SelfAttention(c, name="attn")(
            LayerNorm(c.norm_eps, name="attn_norm")(x_btd), attend
        )
        x_btd = x_btd + dropout(drop_attn, c.dropout, h)
        h = Mlp(c, tanh_gelu=True, name="mlp")(LayerNorm(c.norm_eps, name="mlp_norm")(x_btd))
        return x_btd + dropout(drop_mlp, c.dropout, h), output


class BertLayer(nn.Module):
    """Post-norm layer with erf GELU. Source: Devlin et al. 2019."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, x_btd: Array, attend: Attend, drop: Key[Array, ""] | None = None
    ) -> tuple[Array, Any]:
        c = self.config
        drop_attn, drop_mlp = split_key(drop, 2)
        h, output = SelfAttention(c, name="attn")(x_btd, attend)
        x_btd = LayerNorm(c.norm_eps, name="attn_norm")(x_btd + dropout(drop_attn, c.dropout, h))
        h = Mlp(c, tanh_gelu=False, name="mlp")(x_btd)
        x_btd = LayerNorm(c.norm_eps, name="mlp_norm")(x_btd + dropout(drop_mlp, c.dropout, h))
        return x_btd, output
