"""z added to every input embedding. Source: Li et al. 2020 (Optimus)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Key

from jvae.injections.contract import Injection, Reach
from jvae.nn.backbone import Stack
from jvae.nn.layers import Initializer, Projection, apply

NAME = "offset"


def embedding(stack: Stack, latent: int, start: Initializer) -> Injection:
    """The injection for latents (E, 1, Z); the offset comes behind an embedding's own scale."""
    c = stack.config
    project = Projection((c.width,), ("latent",), ("embed",), False, start)

    def init(key: Key[Array, ""]) -> Any:
        return {NAME: project.init(key, jnp.zeros((1, latent)))["params"]}

    def reach(
        own: Any, z_egz: Array, rows: int, once: Any = None, *, decoding: bool = False
    ) -> Reach:
        del rows, once, decoding
        return Reach(offset_ed=apply(project, own[NAME], z_egz[:, 0].astype(c.dtype)))

    return Injection(frozenset({"decode"}), init, reach)
