"""z as one slot of attention in every layer, key = value.

Source: Li et al. 2020 (Optimus), where the slot takes position 0 and the text begins at 1; Park &
Lee 2021 (T5-VAE), where relative positions put it one place before the text.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Key

from jvae.injections.contract import Injection, Reach
from jvae.nn.backbone import Stack
from jvae.nn.layers import Initializer, Projection
from jvae.nn.points import LatentKv
from jvae.nn.stack import init_stack

NAME = "memory"


def memory(
    stack: Stack, latent: int, start: Initializer, *, lead: int, released: bool = False
) -> Injection:
    """The injection for latents (E, 1, Z).

    Args:
      start: of the projections. lead: 1 where the slot takes a position of the text.
      released: in packed rows, deals the slots of all layers out among the sentences of a batch as
        T5-VAE's code did, so that few get their own; when decoding each has its own.
    """
    c = stack.config
    project = Projection((c.kv_heads, c.head), ("latent",), ("heads", "head"), False, start)

    def init(key: Key[Array, ""]) -> Any:
        z = jnp.zeros((1, latent))
        return {NAME: init_stack(lambda k: project.init(k, z)["params"], key, c.layers)}

    def reach(
        own: Any, z_egz: Array, rows: int, once: Any = None, *, decoding: bool = False
    ) -> Reach:
        del once
        kernel_lzgh = own[NAME]["kernel"].astype(c.dtype)
        slot_legh = jnp.einsum("ez,lzgh->legh", z_egz[:, 0].astype(c.dtype), kernel_lzgh)
        if released and not decoding:
            slot_legh = jnp.moveaxis(slot_legh, 0, 1)
        slot_lbmgh = slot_legh.reshape(c.layers, rows, -1, c.kv_heads, c.head)
        return Reach(slots=LatentKv(slot_lbmgh, slot_lbmgh))

    return Injection(frozenset({"slots"}), init, reach, slots=1, lead=lead)
