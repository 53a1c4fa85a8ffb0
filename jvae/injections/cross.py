"""z as states that the decoder's cross-attention reads."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jvae.injections.contract import Injection, Reach
from jvae.nn.attention import owners
from jvae.nn.backbone import Stack
from jvae.nn.layers import Initializer, Projection, apply

NAME = "source"


def cross(stack: Stack, latent: int, start: Initializer, count: int) -> Injection:
    """The injection of `count` states for latents (E, 1, Z)."""
    c = stack.config
    project = Projection((count, c.width), ("latent",), (None, "embed"), False, start)

    def init(key: Key[Array, ""]) -> Any:
        return {NAME: project.init(key, jnp.zeros((1, latent)))["params"]}

    def reach(
        own: Any, z_egz: Array, rows: int, once: Any = None, *, decoding: bool = False
    ) -> Reach:
        del once, decoding
        state_esd = apply(project, own[NAME], z_egz[:, 0].astype(c.dtype))
        return Reach(cross=stack.cross(own, state_esd.reshape(rows, -1, c.width)))

    return Injection(
        frozenset({"cross"}),
        init,
        reach,
        cross_owners=lambda slots: np.repeat(owners(slots), count),
    )
