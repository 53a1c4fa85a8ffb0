"""Injects z as states for the decoder's cross-attention."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jvae.api import Params
from jvae.injections.contract import Injection, Once, Reach, by_vector
from jvae.nn.attention import owners
from jvae.nn.backbone import Stack
from jvae.nn.layers import Initializer, Projection

NAME = "source"


def cross(stack: Stack, shape: tuple[int, int], start: Initializer, count: int) -> Injection:
    """The injection of `count` states per vector, for latents (G, Z)."""
    c = stack.config
    project = Projection((count, c.width), ("latent",), (None, "embed"), False, start)

    def init(key: Key[Array, ""]) -> Params:
        return {NAME: project.init(key, jnp.zeros((1, shape[0] * shape[1])))["params"]}

    def reach(
        params: Params, z_egz: Array, rows: int, once: Once = None, *, decoding: bool = False
    ) -> Reach:
        del once, decoding
        kernel = params[NAME]["kernel"].astype(c.dtype)
        state_egsd = by_vector("ez,zsd->esd", z_egz.astype(c.dtype), kernel)
        return Reach(cross=stack.cross(params, state_egsd.reshape(rows, -1, c.width)))

    return Injection(
        frozenset({"cross"}),
        init,
        reach,
        cross_owners=lambda slots: np.repeat(owners(slots), shape[0] * count),
    )
