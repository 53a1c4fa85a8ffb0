"""Helpers shared by all model files: boxed parameters, and decode states with a known example
axis.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from jvae.api import DecodeState, Params
from jvae.latent.densities import Affine, Head
from jvae.latent.priors import PriorParts
from jvae.nn import cache as caches
from jvae.nn.layers import Projection, apply


def _is_box(x: object) -> bool:
    return isinstance(x, nn.LogicallyPartitioned)


def unboxed(init: Callable[[Key[Array, ""]], Params]) -> tuple[Callable[[Array], Params], Any]:
    """Splits an init of boxed parameters into an init of plain arrays and a tree of axis names."""
    init = jax.jit(init, inline=True)  # traced once, for the axes and for every later use
    boxed = jax.eval_shape(init, jax.random.key(0))
    axes = jax.tree.map(lambda box: tuple(box.names), boxed, is_leaf=_is_box)
    return (lambda key: nn.unbox(init(key))), axes


def projection_head(
    width: int, make: Callable[[tuple[int, ...], tuple[str | None, ...]], Projection]
) -> Head:
    """A posterior's head, made of the projection that `make` returns for outputs and axes."""

    def head(outputs: tuple[int, ...], axes: tuple[str | None, ...]) -> Affine:
        layer = make(outputs, axes)
        return Affine(
            init=lambda key: layer.init(key, jnp.zeros((1, width)))["params"],
            apply=lambda params, h_ed: apply(layer, params, h_ed),
        )

    return head


def with_prior(params: Params, parts: PriorParts, key: Key[Array, ""]) -> Params:
    """Adds the prior's parameters, if it has any, to those of a model."""
    if parts.init is None:
        return params
    # A separate stream, so that other parameters do not depend on the choice of prior.
    prior_params = parts.init(jax.random.fold_in(key, PRIOR_STREAM))
    return params | {"prior": jax.tree.map(_boxed, prior_params, is_leaf=_is_box)}


def _boxed(leaf: Array | nn.LogicallyPartitioned) -> nn.LogicallyPartitioned:
    """Boxes a leaf; axes without a name get None, which means that they are not sharded."""
    if isinstance(leaf, nn.LogicallyPartitioned):
        return leaf
    return nn.LogicallyPartitioned(leaf, (None,) * jnp.ndim(leaf))


PRIOR_STREAM = 0x9_7A10
SHARED = -1  # replaces the example axis of a leaf that all examples share
KV_AXES: Any = caches.Caches._make((0, 0, SHARED))


def _by_axis(function: Callable[[Array, int], Array], cache: Any, axes: Any) -> Any:
    return jax.tree.map(
        lambda axis, part: (
            part if axis == SHARED else jax.tree.map(lambda a: function(a, axis), part)
        ),
        axes,
        cache,
    )


def expander(example_axes: Any) -> Callable[[DecodeState, int], DecodeState]:
    """`Generator.expand` for a cache with the given example axes.

    `example_axes` has an int for each leaf, or one for all leaves of a subtree; SHARED means that
    there is no example axis.
    """

    def expand(state: DecodeState, k: int) -> DecodeState:
        cache = _by_axis(lambda a, axis: jnp.repeat(a, k, axis=axis), state.cache, example_axes)
        return DecodeState(cache, jnp.repeat(state.position_e, k))

    return expand


def reorderer(example_axes: Any) -> Callable[[DecodeState, Array], DecodeState]:
    """`Generator.reorder` for a cache with the given example axes, as in `expander`."""

    def reorder(state: DecodeState, idx_e: Int[Array, "e"]) -> DecodeState:
        cache = _by_axis(lambda a, axis: jnp.take(a, idx_e, axis=axis), state.cache, example_axes)
        return DecodeState(cache, state.position_e[idx_e])

    return reorder


def grower(
    check: Callable[[int], None] = lambda places: None,
) -> Callable[[DecodeState, int], DecodeState]:
    """`Generator.grow` for a state whose cache has a field `kv` of type `Caches`.

    Args:
      check: raises if the given cache capacity, including slots, is not allowed.
    """

    def grow(state: DecodeState, more: int) -> DecodeState:
        kv = caches.grown(state.cache.kv, more)
        check(kv.position_em.shape[1])
        return state._replace(cache=state.cache._replace(kv=kv))

    return grow


def last_of_prompt(hidden_etd: Array, length_e: Int[Array, "e"]) -> Array:
    """The state of the last real token of each right-padded prompt, (E, D)."""
    return jnp.take_along_axis(hidden_etd, (length_e - 1)[:, None, None], axis=1)[:, 0]
