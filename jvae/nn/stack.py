"""Stacks of identical layers as pure functions over parameters stacked on axis 0.

The stored layout does not depend on how the stack is computed (scan, partly or fully unrolled,
rematerialised): every leaf has layers as its leading axis. Importers, exporters and trainability
rules address parameters by (path, layer range) and are independent of the compute mode.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Key

from jvae.api import Params
from jvae.parallel.mesh import kept_rows

REMAT = ("none", "dots", "full")


def init_stack(init: Callable[[Array], Any], key: Key[Array, ""], layers: int) -> Params:
    """Parameters of `layers` layers, stacked; `init(key)` makes one layer's boxed parameters."""
    stacked = jax.vmap(init)(jax.random.split(key, layers))
    return jax.tree.map(
        lambda box: box.add_axis(0, {nn.PARTITION_NAME: "layers"}),
        stacked,
        is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned),
    )


def layer_range(params: Params, first: int, stop: int) -> Any:
    """The parameters of layers first..stop-1 of a stack."""
    return jax.tree.map(lambda p: p[first:stop], params)


# (params of one layer, x, the layer's slice of xs, dropout key or None) -> (x, its output)
RunLayer = Callable[[Any, Array, Any, Key[Array, ""] | None], tuple[Array, Any]]
# (params of one layer, x, cache of the layer, the layer's slice of xs) -> (x, cache)
StepLayer = Callable[[Any, Array, Any, Any], tuple[Array, Any]]


def run_stack(
    layer: RunLayer,
    params: Params,
    x: Array,
    xs: Any = None,
    *,
    drop: Key[Array, ""] | None = None,
    remat: str = "none",
    unroll: int = 1,
) -> tuple[Array, Any]:
    """Runs x through all layers of a stack.

    Args:
      params: stacked parameters.
      xs: per-layer inputs with layers as leading axis, or None.
      drop: dropout key; each layer gets its own.

    Returns: x after the last layer, and the layers' outputs stacked on axis 0.
    Raises: ValueError for an unknown `remat`.
    """
    if remat not in REMAT:
        raise ValueError(f"remat is {remat!r}; expected one of {', '.join(REMAT)}")
    layers = jax.tree.leaves(params)[0].shape[0]
    keys = None if drop is None else jax.random.split(drop, layers)

    def body(x: Array, inputs: tuple[Any, Any, Any]) -> tuple[Array, Any]:
        layer_params, layer_xs, key = inputs
        x, out = layer(layer_params, kept_rows(x), layer_xs, key)
        return kept_rows(x), out

    if remat == "dots":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    elif remat == "full":
        body = jax.checkpoint(body, prevent_cse=False)
    return jax.lax.scan(body, x, (params, xs, keys), unroll=min(unroll, layers))


def step_stack(
    layer: StepLayer, params: Params, x: Array, caches: Sequence[Any], xs: Any
) -> tuple[Array, Any]:
    """Runs one new token through all layers of a stack, each with its own cache.

    The loop over layers is unrolled, so that work on the parameters alone (slicing, casting to the
    compute dtype) is done once and not for every token.

    Returns: x after the last layer, and the caches.
    """
    new = []
    for index, cache in enumerate(caches):
        layer_params, layer_xs = jax.tree.map(lambda a, index=index: a[index], (params, xs))
        x, cache = layer(layer_params, x, cache, layer_xs)
        new.append(cache)
    return x, tuple(new)
