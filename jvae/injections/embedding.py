"""Adds a projection of z to every input embedding. Source: Li et al. 2020 (Optimus)."""

import jax.numpy as jnp
from jaxtyping import Array, Key

from jvae.api import Params
from jvae.injections.contract import Injection, Once, Reach
from jvae.nn.backbone import Stack
from jvae.nn.layers import Initializer, Projection, apply

NAME = "offset"


def embedding(stack: Stack, shape: tuple[int, int], start: Initializer) -> Injection:
    """The injection for latents of shape (G, Z).

    All vectors are projected to one offset, which is added after the embedding's own scale.
    """
    c = stack.config
    project = Projection((c.width,), ("latent",), ("embed",), False, start)

    def init(key: Key[Array, ""]) -> Params:
        return {NAME: project.init(key, jnp.zeros((1, shape[0] * shape[1])))["params"]}

    def reach(
        params: Params, z_egz: Array, rows: int, once: Once = None, *, decoding: bool = False
    ) -> Reach:
        del rows, once, decoding
        flat_ez = z_egz.reshape(len(z_egz), -1).astype(c.dtype)
        return Reach(offset_ed=apply(project, params[NAME], flat_ez))

    return Injection(frozenset({"decode"}), init, reach)
