"""How a latent vector reaches a GPT-2 decoder: slots of attention, embeddings, adapters, scores.

Source: Fang et al. 2021 (pseudo self-attention, output bias), Li et al. 2020 (memory, embeddings),
Tu et al. 2022 (all of them side by side).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jvae.nn import gpt2
from jvae.nn.config import TransformerConfig
from jvae.nn.layers import Projection, apply
from jvae.nn.stack import init_stack


@dataclass(frozen=True)
class Ways:
    """Which ways are open.

    psa: per layer one slot with a key and a value of its own. memory: per layer one slot, key =
    value. embedding: added to every input embedding. output: added to the scores. adapters: added
    inside every decoder adapter. vary: psa, memory and adapters read a projection of z for every
    layer instead of one for all.
    """

    psa: bool = False
    memory: bool = False
    embedding: bool = False
    output: bool = False
    adapters: bool = False
    vary: bool = False

    @property
    def projected(self) -> bool:
        """Whether some way starts from a projection of z to the width of the decoder."""
        return self.psa or self.memory or self.adapters

    @property
    def open(self) -> bool:
        """Whether z reaches the decoder at all."""
        return self.projected or self.embedding or self.output


class Added(NamedTuple):
    """What one z per example adds to a decoder; None for the ways that are closed."""

    psa: gpt2.LatentKv | None  # (L, B, slots, N, H)
    memory: gpt2.LatentKv | None
    offset_ed: Float[Array, "e d"] | None
    output_ez: Float[Array, "e z"] | None  # z, where the scores read it
    adapter_led: Float[Array, "l e d"] | None


class _OutputBias(nn.Module):
    """z . table + bias over the vocabulary, stored with the vocabulary in front."""

    config: TransformerConfig
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


def _linear(config: TransformerConfig, axis: str, heads: int = 0, bias: bool = False) -> Projection:
    """To the width of the decoder, or to that of `heads` groups of attention heads."""
    c, start = config, nn.initializers.normal(config.init_std)
    if heads == 0:
        out = "embed" if axis == "latent" else None
        return Projection((c.width,), (axis,), (out,), bias, start)
    parts = (heads,) if heads > 1 else ()
    shape, names = (*parts, c.heads, c.head), (*(None for _ in parts), "heads", "head")
    return Projection(shape, (axis,), names, bias, start)


def init(config: TransformerConfig, ways: Ways, latent: int, key: Key[Array, ""]) -> Any:
    """Boxed parameters of the open ways: some of {project, psa, memory, offset, output,
    adapter_latent}.
    """
    keys = jax.random.split(key, 6)
    z, e = jnp.zeros((1, latent)), jnp.zeros((1, config.width))
    params = {}

    def stack(layer: Projection, key: Any, x: Array) -> Any:
        return init_stack(lambda k: layer.init(k, x)["params"], key, config.layers)

    if ways.projected:
        project = _linear(config, "latent")
        params["project"] = (
            stack(project, keys[0], z) if ways.vary else project.init(keys[0], z)["params"]
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


def added(
    config: TransformerConfig, ways: Ways, params: Any, z_ez: Float[Array, "e z"], rows: int
) -> Added:
    """What z adds.

    Args:
      params: a tree that holds those of `init`, among others.
      rows: rows that the examples lie in; as many as examples when decoding.
    """
    c = config
    z_ez = z_ez.astype(c.dtype)
    psa = memory = offset_ed = adapter_led = None

    def slots(key_lenh: Array, value_lenh: Array) -> gpt2.LatentKv:
        shape = (c.layers, rows, -1, c.heads, c.head)
        return gpt2.LatentKv(key_lenh.reshape(shape), value_lenh.reshape(shape))

    def kernel(name: str) -> Array:
        return params[name]["kernel"].astype(c.dtype)

    def bias(name: str) -> Array:
        return params[name]["bias"].astype(c.dtype)[:, None]

    if ways.projected:
        if ways.vary:
            e_led = jnp.einsum("ez,lzd->led", z_ez, kernel("project"))
        else:
            e_ed = jnp.einsum("ez,zd->ed", z_ez, kernel("project"))
            e_led = jnp.broadcast_to(e_ed[None], (c.layers, *e_ed.shape))
        if ways.psa:
            kv_lecnh = jnp.einsum("led,ldcnh->lecnh", e_led, kernel("psa")) + bias("psa")
            psa = slots(kv_lecnh[:, :, 0], kv_lecnh[:, :, 1])
        if ways.memory:
            slot_lenh = jnp.einsum("led,ldnh->lenh", e_led, kernel("memory"))
            memory = slots(slot_lenh, slot_lenh)
        if ways.adapters:
            adapter_led = jnp.einsum("lec,lcd->led", e_led, kernel("adapter_latent"))
            adapter_led = adapter_led + bias("adapter_latent")
    if ways.embedding:
        offset_ed = jnp.einsum("ez,zd->ed", z_ez, kernel("offset"))
    return Added(psa, memory, offset_ed, z_ez if ways.output else None, adapter_led)


def with_output(
    config: TransformerConfig, params: Any, hidden: Float[Array, "... d"], z: Float[Array, "... z"]
) -> tuple[Any, Float[Array, "... c"]]:
    """Decoder parameters and states whose scores are hidden . table + z . output + bias.

    The latent joins the features, so that no (tokens, vocabulary) array of biases ever exists and
    the scores may be computed in chunks of the vocabulary.

    Args:
      z: one latent for every state.
    """
    bias_vc = apply(_OutputBias(config, z.shape[-1]), params["output"])
    table_vc = jnp.concatenate([gpt2.output_table(params), bias_vc], axis=1)
    one = jnp.ones((*z.shape[:-1], 1), hidden.dtype)
    features = jnp.concatenate([hidden, z.astype(hidden.dtype), one], axis=-1)
    return {"head": {"table": table_vc}}, features
