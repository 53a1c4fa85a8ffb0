"""AdaVAE's injections of z: attention slots, embeddings, adapters and scores; and a prefix.

Source: Fang et al. 2021 (pseudo self-attention, output bias), Li et al. 2020 (memory, embeddings),
Li & Liang 2021 (prefix), Tu et al. 2022 (all of them). Slots do not take up positions of the text.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jvae.api import Params
from jvae.injections.contract import Injection, Lay, Once, Reach, by_vector, side_by_side
from jvae.nn.adapters import Adapter, AdapterInputs, adapter_tap
from jvae.nn.attention import for_everyone, owners
from jvae.nn.backbone import Stack
from jvae.nn.layers import Projection, apply
from jvae.nn.points import LatentKv, Points
from jvae.nn.prefix import Prefix, for_rows
from jvae.nn.stack import init_stack


@dataclass(frozen=True)
class Ways:
    """Enabled injections.

    psa: one slot per layer and vector of z, with separate key and value.
    memory: one slot per layer and vector of z, with key = value.
    embedding: z is added to every input embedding.
    output: z is added to the scores.
    adapters: z is added inside every decoder adapter.
    layerwise_projection: psa, memory and adapters use a projection of z per layer instead of a
      shared one.
    """

    psa: bool = False
    memory: bool = False
    embedding: bool = False
    output: bool = False
    adapters: bool = False
    layerwise_projection: bool = False

    @property
    def projected(self) -> bool:
        """Whether any injection uses a projection of z to the width of the decoder."""
        return self.psa or self.memory or self.adapters

    @property
    def open(self) -> bool:
        """Whether any injection is enabled."""
        return self.projected or self.embedding or self.output


class _OutputBias(nn.Module):
    """z . table + bias over the vocabulary; the table's leading axis is the vocabulary."""

    config: Any
    latent: int

    @nn.compact
    def __call__(self) -> Array:
        c = self.config
        vocab = nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",))
        start = nn.initializers.normal(c.init_std)
        names = nn.with_logical_partitioning(start, ("vocab", "latent"))
        table_vz: Any = self.param("table", names, (c.vocab_padded, self.latent))
        bias_v: Any = self.param("bias", vocab, (c.vocab_padded,))
        return jnp.concatenate([table_vz, bias_v[:, None]], axis=1)


def _linear(config: Any, axis: str, heads: int = 0, bias: bool = False) -> Projection:
    """A projection to the decoder's width, or to `heads` groups of attention heads."""
    c, start = config, nn.initializers.normal(config.init_std)
    if heads == 0:
        out = "embed" if axis == "latent" else None
        return Projection((c.width,), (axis,), (out,), bias, start)
    parts = (heads,) if heads > 1 else ()
    shape, names = (*parts, c.kv_heads, c.head), (*(None for _ in parts), "heads", "head")
    return Projection(shape, (axis,), names, bias, start)


def init(config: Any, ways: Ways, latent: int, key: Key[Array, ""]) -> Params:
    """Boxed parameters of the enabled injections.

    These are some of {project, psa, memory, offset, output, adapter_latent}.
    """
    keys = jax.random.split(key, 6)
    z, e = jnp.zeros((1, latent)), jnp.zeros((1, config.width))
    params = {}

    def stack(layer: Projection, key: Key[Array, ""], x: Array) -> Params:
        return init_stack(lambda k: layer.init(k, x)["params"], key, config.layers)

    if ways.projected:
        project = _linear(config, "latent")
        params["project"] = (
            stack(project, keys[0], z)
            if ways.layerwise_projection
            else project.init(keys[0], z)["params"]
        )
    if ways.psa:
        params["psa"] = stack(_linear(config, "embed", 2, bias=True), keys[1], e)
    if ways.memory:
        params["memory"] = stack(_linear(config, "embed", 1), keys[2], e)
    if ways.embedding:
        params["offset"] = _linear(config, "latent").init(keys[3], z)["params"]
    if ways.output:
        params["output"] = _OutputBias(config, latent).init(keys[4])["params"]
    if ways.adapters:
        params["adapter_latent"] = stack(_linear(config, "embed", bias=True), keys[5], e)
    return params


def _reach(
    config: Any, ways: Ways, params: Params, z_egz: Array, rows: int
) -> tuple[LatentKv | None, LatentKv | None, Reach]:
    c, (examples, vectors, _) = config, z_egz.shape
    z_evz = z_egz.astype(c.dtype)
    z_ez = z_evz.reshape(examples, -1)
    psa = memory = offset_ed = adapter_led = feature_ec = None

    def slots(key_lmnh: Array, value_lmnh: Array) -> LatentKv:
        shape = (c.layers, rows, -1, c.kv_heads, c.head)
        return LatentKv(key_lmnh.reshape(shape), value_lmnh.reshape(shape))

    def kernel(name: str) -> Array:
        return params[name]["kernel"].astype(c.dtype)

    def bias(name: str) -> Array:
        return params[name]["bias"].astype(c.dtype)[:, None]

    if ways.projected:
        # Projections of all vectors of all examples, M of them, one after the other.
        if ways.layerwise_projection:
            e_levd = by_vector("ez,lzd->led", z_evz, kernel("project"))
        else:
            e_evd = by_vector("ez,zd->ed", z_evz, kernel("project"))
            e_levd = jnp.broadcast_to(e_evd[None], (c.layers, *e_evd.shape))
        e_lmd = e_levd.reshape(c.layers, -1, c.width)
        if ways.psa:
            kv_lmcnh = jnp.einsum("lmd,ldcnh->lmcnh", e_lmd, kernel("psa")) + bias("psa")
            psa = slots(kv_lmcnh[:, :, 0], kv_lmcnh[:, :, 1])
        if ways.memory:
            slot_lmnh = jnp.einsum("lmd,ldnh->lmnh", e_lmd, kernel("memory"))
            memory = slots(slot_lmnh, slot_lmnh)
        if ways.adapters:
            e_led = e_lmd if vectors == 1 else jnp.sum(e_levd, axis=2)
            adapter_led = jnp.einsum("lec,lcd->led", e_led, kernel("adapter_latent"))
            adapter_led = adapter_led + bias("adapter_latent")
    if ways.embedding:
        offset_ed = jnp.einsum("ez,zd->ed", z_ez, kernel("offset"))
    if ways.output:
        one_e1 = jnp.ones((z_ez.shape[0], 1), z_ez.dtype)
        feature_ec = jnp.concatenate([z_ez, one_e1], axis=-1)
    rest = Reach(offset_ed=offset_ed, feature_ec=feature_ec, layer_le=adapter_led)
    return psa, memory, rest


def all_ways(
    stack: Stack,
    ways: Ways,
    shape: tuple[int, int],
    *,
    adapter: Adapter | None = None,
    places: frozenset[str] = frozenset(),
    prefix: Prefix | None = None,
) -> Injection:
    """Combines the enabled injections of latents of shape (G, Z).

    Every vector has its own slots; embeddings, adapters and scores read all vectors. The decoder's
    adapters and prefix do not inject z, but act at the same points, so they are included. Their
    parameters, {adapter, prefix}, are initialised together with the encoder's.

    Args:
      adapter, places: the adapter of the decoder's layers and its taps; None for no adapter.
      prefix: learned slots visible to all examples; None for no prefix.
    """
    c, vectors, latent = stack.config, shape[0], shape[0] * shape[1]
    count = 0 if prefix is None else prefix.slots
    needs = {"decode"}
    needs |= {"slots"} if ways.psa or ways.memory or count else set()
    needs |= {"features"} if ways.output else set()
    needs |= {"taps"} if adapter is not None else set()

    def once(params: Params, drop: Key[Array, ""] | None) -> Once:
        return None if prefix is None else apply(prefix, params["prefix"], drop)

    def give(
        params: Params, z_egz: Array, rows: int, once: Once = None, *, decoding: bool = False
    ) -> Reach:
        del decoding
        psa, memory, rest = _reach(c, ways, params, z_egz, rows)
        shared = None if once is None else for_rows(once[0], once[1], rows, c.layers)
        parts = [part for part in (psa, shared, memory) if part is not None]
        return rest._replace(slots=side_by_side(parts))

    def points(params: Params, reach: Reach, lay: Lay) -> Points:
        if adapter is None:
            return Points()
        inputs = AdapterInputs(params["adapter"], reach.layer_le)
        return Points(tap=adapter_tap(adapter, places, lay), tap_l=inputs)

    def table(params: Params) -> Array:
        return apply(_OutputBias(c, latent), params["output"])

    def slot_owners(slots: int) -> np.ndarray:
        latent_m, shared_m = np.repeat(owners(slots), vectors), for_everyone(count)
        return np.concatenate([latent_m] * ways.psa + [shared_m] + [latent_m] * ways.memory)

    return Injection(
        needs=frozenset(needs),
        init=lambda key: init(c, ways, latent, key),
        reach=give,
        points=points,
        once=once if prefix is not None else None,
        table=table if ways.output else None,
        owners=slot_owners,
        slots=vectors * (int(ways.psa) + int(ways.memory)) + count,
    )
