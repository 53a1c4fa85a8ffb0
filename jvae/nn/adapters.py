"""Bottleneck adapters around the layers of a frozen stack.

Source: Houlsby et al. 2019 (the bottleneck), He et al. 2022 (placements). An adapter acts on the
raw residual stream, without an inner norm.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jvae.api import Params
from jvae.nn.block import TAPS
from jvae.nn.layers import Projection, apply


class Adapter(nn.Module):
    """scale * (up(relu(down(x))) + added); the caller adds the result to the adapted state.

    scale: a fixed factor, or its initial value with `learn_scale`. identity: initialises `up` to
    zero, so that training starts from the frozen model's function. std: standard deviation of the
    initial kernels.
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
    """Inputs of an adapted layer in addition to its frozen parameters."""

    params: Params  # the adapter's parameters
    added_ed: Float[Array, "e d"] | None = None  # per-example addend to the adapter's output


def adapter_tap(
    adapter: Adapter,
    places: frozenset[str],
    lay: Callable[[Float[Array, "e d"]], Float[Array, "b t d"]] | None = None,
) -> Callable[[str, Array, AdapterInputs], Array | None]:
    """A tap (`jvae.nn.points.Points`) with one adapter, used at each of `places`.

    At "input" the adapter reads the layer's input, and its output is added before that of
    attention. At "attn", "hidden" and "mlp" it reads the attention output, the stream between the
    sub-layers and the feed-forward output; its output is then added to the layer's output.

    Args:
      lay: broadcasts each example's vector to its tokens; required if the inputs have `added_ed`.
    Raises: ValueError for an unknown place.
    """
    if unknown := places - set(TAPS):
        raise ValueError(f"unknown places {sorted(unknown)}; expected some of {', '.join(TAPS)}")

    def tap(name: str, state: Array, inputs: AdapterInputs) -> Array | None:
        if name not in places:
            return None
        added = None
        if inputs.added_ed is not None:
            assert lay is not None
            added = lay(inputs.added_ed)
        return apply(adapter, inputs.params, state, added)

    return tap
