"""Injects each vector of z as one attention slot in every layer, with key = value.

Source: Li et al. 2020 (Optimus), where the slot has position 0 and the text begins at 1; Park &
Lee 2021 (T5-VAE), where its relative position is just before the text.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jvae.api import Params
from jvae.injections.contract import Injection, Once, Reach, by_vector
from jvae.nn.attention import owners
from jvae.nn.backbone import Stack
from jvae.nn.layers import Initializer, Projection
from jvae.nn.points import LatentKv
from jvae.nn.stack import init_stack

NAME = "memory"


def memory(
    stack: Stack,
    shape: tuple[int, int],
    start: Initializer,
    *,
    lead: int,
    released: bool = False,
) -> Injection:
    """The injection for latents of shape (G, Z).

    Args:
      start: initialiser of the projections.
      lead: 1 if the slots take up a position of the text (one for all of them), else 0.
      released: reproduces a mistake of T5-VAE's code, which in packed rows deals out the slots of
        all
    layers among the sentences of a batch, so that most sentences read those of another. In
    decoding, every sentence reads its own.
    """
    c, (vectors, width) = stack.config, shape
    project = Projection((c.kv_heads, c.head), ("latent",), ("heads", "head"), False, start)

    def init(key: Key[Array, ""]) -> Params:
        z = jnp.zeros((1, vectors * width))
        return {NAME: init_stack(lambda k: project.init(k, z)["params"], key, c.layers)}

    def reach(
        params: Params, z_egz: Array, rows: int, once: Once = None, *, decoding: bool = False
    ) -> Reach:
        del once
        kernel = params[NAME]["kernel"].astype(c.dtype)
        slot_levnh = by_vector("ez,lznh->lenh", z_egz.astype(c.dtype), kernel)
        if released and not decoding:
            slot_levnh = jnp.moveaxis(slot_levnh, 0, 1)
        slot_lbmnh = slot_levnh.reshape(c.layers, rows, -1, c.kv_heads, c.head)
        return Reach(slots=LatentKv(slot_lbmnh, slot_lbmnh))

    return Injection(
        frozenset({"slots"}),
        init,
        reach,
        owners=lambda slots: np.repeat(owners(slots), vectors),
        slots=vectors,
        lead=lead,
    )
