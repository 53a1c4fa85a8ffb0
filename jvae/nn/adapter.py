"""Bottleneck adapters around the layers of a frozen stack.

Source: Houlsby et al. 2019 (the bottleneck), He et al. 2022 (placements). An adapter acts on the
raw residual stream: there is no norm inside.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jaxtyping import Array, Float, Key

from jvae.nn.config import TransformerConfig
from jvae.nn.gpt2 import Block
from jvae.nn.layers import LayerNorm, Projection, apply, dropout, split_key
from jvae.nn.transformer import Attend, Mlp, SelfAttention

PLACES = ("input", "attn", "hidden", "mlp")


class Adapter(nn.Module):
    """scale * (up(relu(down(x))) + added); the caller adds it to what it adapts.

    scale: a factor, learned from that value on with `learn_scale`. identity: the way up starts at
    zero, so that the first function is the frozen one. std: of the initial kernels.
    """

    width: int
    size: int
    scale: float = 1.0
    learn_scale: bool = False
    identity: bool = False
    std: float = 0.02

    @nn.compact
    def __call__(self, x: Array, added: Array | None = None) -> Array:
        start = nn.initializers.normal(self.std)
        down = Projection((self.size,), ("embed",), (None,), kernel_init=start, name="down")
        start = nn.initializers.zeros if self.identity else start
        up = Projection((self.width,), (None,), ("embed",), kernel_init=start, name="up")
        y = up(jax.nn.relu(down(x)))
        y = y if added is None else y + added
        if not self.learn_scale:
            return self.scale * y
        start = nn.with_logical_partitioning(nn.initializers.constant(self.scale), ())
        scale: Any = self.param("scale", start, ())
        return scale.astype(y.dtype) * y


class AdapterInputs(NamedTuple):
    """What an adapted layer gets beside its frozen parameters."""

    params: Any  # of the adapter
    added_ed: Float[Array, "e d"] | None = None  # joins the adapter's output, per example


def adapted_block(
    config: TransformerConfig,
    adapter: Adapter,
    places: frozenset[str],
    to_tokens: Callable[[Float[Array, "e d"]], Float[Array, "b t d"]] | None = None,
) -> Block:
    """A GPT-2 layer with one adapter, used at each of `places`; its inputs are `AdapterInputs`.

    Places: "input" replaces x by x + f(x) in the residual stream before the attention output joins
    it (attention itself reads x); "attn" adds f(attention output) to the layer's output; "hidden"
    adds f(stream between attention and MLP) to it; "mlp" adds f(MLP output).

    Args:
      to_tokens: lays a vector per example out for the tokens; needed where one is added.
    """
    if unknown := places - set(PLACES):
        raise ValueError(f"unknown places {sorted(unknown)}; expected some of {', '.join(PLACES)}")

    def block(
        params: Any, x: Array, attend: Attend, inputs: AdapterInputs, drop: Key[Array, ""] | None
    ) -> tuple[Array, Any]:
        drop_attn, drop_mlp = split_key(drop, 2)
        added = None
        if inputs.added_ed is not None:
            assert to_tokens is not None
            added = to_tokens(inputs.added_ed)

        def f(y: Array) -> Array:
            return apply(adapter, inputs.params, y, added)

        def norm(name: str, y: Array) -> Array:
            return apply(LayerNorm(config.norm_eps), params[name], y)

        a, output = apply(SelfAttention(config), params["attn"], norm("attn_norm", x), attend)
        a = dropout(drop_attn, config.dropout, a)
        h = (x + f(x) if "input" in places else x) + a
        m = apply(Mlp(config, tanh_gelu=True), params["mlp"], norm("mlp_norm", h))
        m = dropout(drop_mlp, config.dropout, m)
        y = h + (m + f(m) if "mlp" in places else m)
        for place, state in (("attn", a), ("hidden", h)):
            if place in places:
                y = y + f(state)
        return y, output

    return block
