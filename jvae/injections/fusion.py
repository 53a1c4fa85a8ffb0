"""Low-rank tensor product of attention values with a latent per layer.

    value' = (sum_r (W_r [v; 1] + a_r)) * (sum_r (B_r [z; 1] + b_r))        sum_then_product
    value' =  sum_r (W_r [v; 1] + a_r) * (B_r [z; 1] + b_r)                 product_then_sum

Axis letters are those of `jvae.api`, plus R for the rank of the product.

Source: Hu et al. 2022 (DELLA), eq. 9, and the released code, which sums first. A sum of linear maps
is one linear map, so that form has rank one for any R and is computed as such. R only changes the
scale at initialisation and the effective step size of the optimizer.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jvae.api import Params
from jvae.injections.contract import Injection, Lay, Once, Reach
from jvae.nn.backbone import Stack
from jvae.nn.layers import NORMAL, accum_dtype, split_key
from jvae.nn.points import Points
from jvae.nn.stack import init_stack

ORDERS = ("sum_then_product", "product_then_sum")


class Fusion(NamedTuple):
    """The fused layers of a decoder, first..first+groups-1, and the order of the product.

    config: config of a stack with kv_heads and head; values are fused per key and value head.
    """

    config: Any
    first: int
    groups: int
    order: str


class FuseInputs(NamedTuple):
    """Inputs of `fuse` with layers as leading axis; R is 1 for "sum_then_product".

    `on_l` is None if every layer is fused; otherwise unfused layers have zeros here.
    """

    kernel_ldrnh: Float[Array, "l d r n h"]
    offset_lrnh: Float[Array, "l r n h"]
    factor_lernh: Float[Array, "l e r n h"]
    on_l: Bool[Array, "l"] | None


class _RankMaps(nn.Module):
    """R affine maps of [x; 1].

    The row for the constant and the bias are redundant, as in the released code, where the
    optimizer updates both.
    """

    rank: int
    heads: int
    head: int
    axis: str

    @nn.compact
    def __call__(self, x: Array) -> Any:
        out = (self.rank, self.heads, self.head)
        names = (None, "heads", "head")
        part = nn.with_logical_partitioning
        return (
            self.param("kernel", part(NORMAL, (self.axis, *names)), (x.shape[-1], *out)),
            self.param("constant", part(NORMAL, names), out),
            self.param("bias", part(nn.initializers.zeros, names), out),
        )


def init(config: Any, groups: int, latent: int, rank: int, key: Key[Array, ""]) -> Params:
    """Boxed parameters {value, latent} of `groups` layers, stacked."""
    value_key, latent_key = split_key(key, 2)
    shape = (rank, config.kv_heads, config.head)
    value = _RankMaps(*shape, axis="embed")
    z = _RankMaps(*shape, axis="latent")
    x = jnp.zeros((1, config.kv_heads * config.head))
    return {
        "value": init_stack(lambda k: value.init(k, x)["params"], value_key, groups),
        "latent": init_stack(
            lambda k: z.init(k, jnp.zeros((1, latent)))["params"], latent_key, groups
        ),
    }


def _every_layer(fusion: Fusion, leaf: Array) -> Array:
    after = fusion.config.layers - fusion.first - fusion.groups
    return jnp.pad(leaf, ((fusion.first, after), *[(0, 0)] * (leaf.ndim - 1)))


def _collapsed(fusion: Fusion, leaf: Array, axis: int) -> Array:
    return jnp.sum(leaf, axis, keepdims=True) if fusion.order == "sum_then_product" else leaf


def latent_factor(
    fusion: Fusion, params: Params, z_egz: Float[Array, "e g z"]
) -> Float[Array, "l e r n h"]:
    """The latent factor of the product for every layer, in the compute dtype."""
    p = params["latent"]
    z_egz = z_egz.astype(accum_dtype(z_egz.dtype))
    kernel_gzrnh = _collapsed(fusion, p["kernel"], 2).astype(z_egz.dtype)
    offset_grnh = _collapsed(fusion, p["constant"] + p["bias"], 1)
    factor_gernh = jnp.einsum("egz,gzrnh->gernh", z_egz, kernel_gzrnh) + offset_grnh[:, None]
    return _every_layer(fusion, factor_gernh.astype(fusion.config.dtype))


def inputs(fusion: Fusion, params: Params, factor_lernh: Float[Array, "l e r n h"]) -> FuseInputs:
    """Computes the inputs of `fuse` once, outside the loops over layers and tokens."""
    p = params["value"]
    layers = fusion.config.layers
    on_l = None
    if fusion.groups < layers:
        layer_l = jnp.arange(layers)
        on_l = (layer_l >= fusion.first) & (layer_l < fusion.first + fusion.groups)
    return FuseInputs(
        _every_layer(fusion, _collapsed(fusion, p["kernel"], 2).astype(fusion.config.dtype)),
        _every_layer(
            fusion, _collapsed(fusion, p["constant"] + p["bias"], 1).astype(fusion.config.dtype)
        ),
        factor_lernh,
        on_l,
    )


def fuse(
    value_btnh: Float[Array, "b t n h"], layer: FuseInputs, lay: Lay
) -> Float[Array, "b t n h"]:
    """The fused values of one layer.

    Args:
      layer: the layer's slice of `inputs`.
      lay: broadcasts each example's factor to its tokens.
    """
    b, t, n, h = value_btnh.shape
    kernel_drnh, offset_rnh, factor_ernh, on = layer

    def fused(value_btnh: Array) -> Array:
        maps = "btd,drnh->btrnh"
        text_btrnh = jnp.einsum(maps, value_btnh.reshape(b, t, n * h), kernel_drnh)
        text_btrnh = text_btrnh + offset_rnh[None, None]
        return jnp.sum(text_btrnh * lay(factor_ernh), axis=2)

    if on is None:
        return fused(value_btnh)
    return jax.lax.cond(on, fused, lambda value_btnh: value_btnh, value_btnh)


NAME = "fusion"


def fusion(stack: Stack, first: int, groups: int, latent: int, rank: int, order: str) -> Injection:
    """The injection of latents (E, G, Z), one for each fused layer."""
    how = Fusion(stack.config, first, groups, order)

    def reach(
        params: Params, z_egz: Array, rows: int, once: Once = None, *, decoding: bool = False
    ) -> Reach:
        del rows, once, decoding
        return Reach(layer_le=latent_factor(how, params[NAME], z_egz))

    def points(params: Params, reach: Reach, lay: Lay) -> Points:
        return Points(
            value=lambda value_btnh, layer: fuse(value_btnh, layer, lay),
            value_l=inputs(how, params[NAME], reach.layer_le),
        )

    return Injection(
        frozenset({"values"}),
        lambda key: {NAME: init(stack.config, groups, latent, rank, key)},
        reach,
        points,
    )
