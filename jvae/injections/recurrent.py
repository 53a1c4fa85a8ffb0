"""Injects z as the first hidden state, h_0 = W z + b, and as an extra input of every step.

Source: Kim et al. 2018, arXiv 1802.02550, and the released code.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jvae.api import Params
from jvae.nn.backbone import Recurrent, Stack
from jvae.nn.layers import split_key


class Gates(NamedTuple):
    """A latent's contribution to the gates of every token and, through h_0, of the first one."""

    token: Float[Array, "e 4 f"]
    first: Float[Array, "e 4 f"]


def init(stack: Stack, latent: int, key: Key[Array, "3"]) -> Params:
    """Boxed parameters {latent, first}, stored next to those of the stack.

    Args:
      latent: total dimension of all vectors of a latent.
    """
    cell, hidden = _recurrent(stack), _recurrent(stack).hidden
    keys = split_key(key, 3) if key.ndim == 0 else key
    return {
        "latent": {"kernel": cell.uniform(keys[0], (latent, 4, hidden), ("latent", None, None))},
        "first": {
            "kernel": cell.uniform(keys[1], (latent, hidden), ("latent", None)),
            "bias": cell.uniform(keys[2], (hidden,), (None,)),
        },
    }


def gates(stack: Stack, params: Params, z_egz: Float[Array, "e g z"]) -> Gates:
    """Computes the contributions of latents; their groups are concatenated."""
    dtype = stack.config.dtype
    z_ez = z_egz.reshape(z_egz.shape[0], -1).astype(dtype)
    kernel_z4f, kernel_zf = (params[name]["kernel"].astype(dtype) for name in ("latent", "first"))
    bias_1f = params["first"]["bias"].astype(dtype)[None]
    token_e4f = jnp.tensordot(z_ez, kernel_z4f, axes=1)
    return Gates(token_e4f, _recurrent(stack).state_gates(params, z_ez @ kernel_zf + bias_1f))


def _recurrent(stack: Stack) -> Recurrent:
    assert stack.recurrent is not None  # this injection requires the ability
    return stack.recurrent
