"""Injects z as vectors in front of the text, which every layer processes like tokens.

They take up the positions before the text. In a packed row, all of them come before the first text,
each in the segment of its own example.
"""

import jax.numpy as jnp
from jaxtyping import Array, Key

from jvae.api import Params
from jvae.injections.contract import Injection, Once, Reach, by_vector
from jvae.nn.backbone import Stack
from jvae.nn.layers import Initializer, Projection

NAME = "tokens"


def tokens(stack: Stack, shape: tuple[int, int], start: Initializer, count: int) -> Injection:
    """The injection of `count` vectors per latent vector, for latents (G, Z)."""
    c = stack.config
    project = Projection((count, c.width), ("latent",), (None, "embed"), kernel_init=start)

    def init(key: Key[Array, ""]) -> Params:
        return {NAME: project.init(key, jnp.zeros((1, shape[0] * shape[1])))["params"]}

    def reach(
        params: Params, z_egz: Array, rows: int, once: Once = None, *, decoding: bool = False
    ) -> Reach:
        del rows, once, decoding
        kernel, bias_cd = (params[NAME][name].astype(c.dtype) for name in ("kernel", "bias"))
        token_egcd = by_vector("ez,zcd->ecd", z_egz.astype(c.dtype), kernel) + bias_cd[None, None]
        return Reach(token_emd=token_egcd.reshape(len(z_egz), -1, c.width))

    return Injection(frozenset({"tokens"}), init, reach, tokens=shape[0] * count)
