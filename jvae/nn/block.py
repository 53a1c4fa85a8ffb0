"""One transformer layer of any `StackSpec`.

A layer computes queries, keys and values and passes them to `attend(q, k, v) -> (mixed_btnh,
output)`. Masks, rotary positions, latent slots and caches are handled by that function, so teacher
forcing, prefill and stepwise decoding share the layer's weights.

States can be tapped: for a named point, `tap(name, state)` returns an addend to the residual
stream, or None. The point "input" is the layer's input; its addend is added before attention's
output. "attn" is attention's output, "hidden" the stream between the two sub-layers and "mlp" the
feed-forward output; their addends are added to the layer's output.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key

from jvae.nn.activations import ACTIVATIONS
from jvae.nn.cross import AttendCross
from jvae.nn.layers import Projection, dropout, fold_key, split_key
from jvae.nn.norms import LayerNorm, RmsNorm
from jvae.nn.spec import StackSpec

Attend = Callable[[Array, Array, Array], tuple[Array, Any]]
Tap = Callable[[str, Array], Array | None]
TAPS = ("input", "attn", "hidden", "mlp")


def norm(spec: StackSpec, name: str | None = None) -> nn.Module:
    """Makes the kind of norm that the stack uses."""
    if spec.norm == "layer":
        return LayerNorm(spec.norm_eps, spec.norm_bias, name=name)
    return RmsNorm(spec.norm_eps, plus_one=spec.norm == "rms_plus_one", name=name)


class SelfAttention(nn.Module):
    """Query, key, value and output projections; the first three are fused for equal head counts."""

    spec: StackSpec

    @nn.compact
    def __call__(self, x_btd: Array, attend: Attend) -> tuple[Array, Any]:
        c = self.spec
        heads, init = (None, "heads", "head"), nn.initializers.normal(c.init_std)

        def project(name: str, features: tuple[int, ...], axes: tuple[str | None, ...]) -> Array:
            return Projection(features, ("embed",), axes, c.qkv_bias, init, name=name)(x_btd)

        if c.fused:
            qkv = project("qkv", (3, c.heads, c.head), heads)
            q, k, v = (qkv[..., i, :, :] for i in range(3))
        else:
            q = project("q", (c.heads, c.head), heads[1:])
            kv = project("kv", (2, c.kv_heads, c.head), heads)
            k, v = (kv[..., i, :, :] for i in range(2))
        if c.head_norm:
            q, k = norm(c, "q_norm")(q), norm(c, "k_norm")(k)
        mixed_btnh, output = attend(q, k, v)
        out = Projection(
            (c.width,), ("heads", "head"), ("embed",), c.out_bias, kernel_init=init, name="out"
        )
        return out(mixed_btnh), output


def cross_kv(spec: StackSpec) -> Projection:
    """The projection of external states to a layer's cross-attention keys and values."""
    axes, init = (None, "heads", "head"), nn.initializers.normal(spec.init_std)
    return Projection((2, spec.kv_heads, spec.head), ("embed",), axes, spec.qkv_bias, init)


class CrossAttention(nn.Module):
    """Query and output projections; `cross_kv` computes keys and values once per source."""

    spec: StackSpec

    @nn.compact
    def __call__(self, x_btd: Array, attend: AttendCross) -> Array:
        c = self.spec
        init, heads = nn.initializers.normal(c.init_std), ("heads", "head")
        q = Projection((c.heads, c.head), ("embed",), heads, c.qkv_bias, init, name="q")
        out = Projection((c.width,), heads, ("embed",), c.out_bias, init, name="out")
        return out(attend(q(x_btd)))


class FeedForward(nn.Module):
    """Two projections around an activation, with a third, gated one if the stack has it."""

    spec: StackSpec

    @nn.compact
    def __call__(self, x_btd: Array) -> Array:
        c = self.spec
        init = nn.initializers.normal(c.init_std)

        def widen(name: str) -> Array:
            return Projection((c.mlp,), ("embed",), ("mlp",), c.mlp_bias, init, name=name)(x_btd)

        activation = ACTIVATIONS[c.activation]
        if c.fused_gate:
            both = Projection((2, c.mlp), ("embed",), (None, "mlp"), c.mlp_bias, init, name="both")
            gate, up = (both(x_btd)[..., i, :] for i in range(2))
            h = activation(gate) * up
        else:
            h = activation(widen("gate")) * widen("up") if c.gated else activation(widen("up"))
        return Projection((c.width,), ("mlp",), ("embed",), c.mlp_bias, init, name="down")(h)


class Layer(nn.Module):
    """Attention and feed-forward with the stack's residual form."""

    spec: StackSpec

    @nn.compact
    def __call__(
        self,
        x_btd: Array,
        attend: Attend,
        drop: Key[Array, ""] | None = None,
        tap: Tap | None = None,
        is_first: Bool[Array, ""] | None = None,
        attend_cross: AttendCross | None = None,
    ) -> tuple[Array, Any]:
        """Returns the layer's output and the second output of `attend`.

        Args:
          is_first: True in layer 0, for stacks in which that layer differs.
          attend_cross: None skips cross-attention.
        """
        c = self.spec
        drop_attn, drop_mlp = split_key(drop, 2)
        post, sandwich = c.residual == "post", c.residual == "sandwich"

        def plus(stream: Array, name: str, state: Array) -> Array:
            joins = None if tap is None else tap(name, state)
            return stream if joins is None else stream + joins

        x_attn = x_btd
        if not post:
            x_attn = norm(c, "attn_norm")(x_btd)
            if is_first is not None:
                x_attn = jnp.where(is_first, x_btd, x_attn)
        attn, output = SelfAttention(c, name="attn")(x_attn, attend)
        if sandwich:
            attn = norm(c, "attn_out_norm")(attn)
        attn = dropout(drop_attn, c.dropout, attn)
        hidden = plus(x_btd, "input", x_btd) + attn
        if post:
            hidden = norm(c, "attn_norm")(hidden)
        if attend_cross is not None:
            h = hidden if post else norm(c, "cross_norm")(hidden)
            h = CrossAttention(c, name="cross")(h, attend_cross)
            hidden = hidden + dropout(fold_key(drop, 2), c.dropout, h)
            if post:
                hidden = norm(c, "cross_norm")(hidden)
        x_mlp = hidden
        if not post:
            x_mlp = norm(c, "mlp_norm")(x_btd if c.residual == "parallel" else hidden)
        mlp = FeedForward(c, name="mlp")(x_mlp)
        if sandwich:
            mlp = norm(c, "mlp_out_norm")(mlp)
        mlp = dropout(drop_mlp, c.dropout, mlp)
        y_btd = hidden + plus(mlp, "mlp", mlp)
        y_btd = plus(plus(y_btd, "attn", attn), "hidden", hidden)
        return norm(c, "mlp_norm")(y_btd) if post else y_btd, output
