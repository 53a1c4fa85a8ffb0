"""z as vectors in front of the text, which every layer reads as it reads tokens.

They take the positions in front of the text. In a packed row all of them stand before the first
text, each in the segment of its own example.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Key

from jvae.injections.contract import Injection, Reach
from jvae.nn.backbone import Stack
from jvae.nn.layers import Initializer, Projection, apply

NAME = "tokens"


def tokens(stack: Stack, latent: int, start: Initializer, count: int) -> Injection:
    """The injection of `count` vectors for latents (E, 1, Z)."""
    c = stack.config
    project = Projection((count, c.width), ("latent",), (None, "embed"), kernel_init=start)

    def init(key: Key[Array, ""]) -> Any:
        return {NAME: project.init(key, jnp.zeros((1, latent)))["params"]}

    def reach(
        own: Any, z_egz: Array, rows: int, once: Any = None, *, decoding: bool = False
    ) -> Reach:
        del rows, once, decoding
        return Reach(token_emd=apply(project, own[NAME], z_egz[:, 0].astype(c.dtype)))

    return Injection(frozenset({"tokens"}), init, reach, tokens=count)
