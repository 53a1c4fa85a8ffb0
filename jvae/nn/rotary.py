"""Rotary position embeddings: rotate pairs (i, i + half) of a head by position * frequency_i.

Source: Su et al. 2021, arXiv 2104.09864, in the half-rotation order of all Hugging Face families.
Long-context scaling is that of Llama 3 ("llama3") or a plain division ("linear").
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jvae.nn.layers import accum_dtype

SCALINGS = ("none", "linear", "llama3")


@dataclass(frozen=True)
class Rotary:
    """Frequencies theta^(-2i / turned) of one kind of layer.

    share: fraction of each head's features that is rotated, starting with the first (Pythia: 0.25).
    The fields from `factor` on belong to the scaling.
    """

    theta: float = 10_000.0
    share: float = 1.0
    scaling: str = "none"
    factor: float = 1.0
    low_factor: float = 1.0
    high_factor: float = 4.0
    original: int = 8_192

    def turned(self, head: int) -> int:
        """Number of rotated features per head, always even."""
        return int(head * self.share) // 2 * 2

    def frequencies(self, head: int) -> Float[np.ndarray, "half"]:
        """Radians per position, in float64 on the host."""
        turned = self.turned(head)
        frequency = self.theta ** -(np.arange(0, turned, 2, dtype=np.float64) / turned)
        if self.scaling == "linear":
            return frequency / self.factor
        if self.scaling == "llama3":
            wave = 2 * math.pi / frequency
            low, high = self.original / self.low_factor, self.original / self.high_factor
            smooth = (self.original / wave - self.low_factor) / (self.high_factor - self.low_factor)
            between = (1 - smooth) * frequency / self.factor + smooth * frequency
            return np.where(
                wave > low, frequency / self.factor, np.where(wave < high, frequency, between)
            )
        return frequency


def turns(
    rotary: Rotary, head: int, position: Int[Array, "..."], dtype: jnp.dtype
) -> tuple[Float[Array, "... half"], Float[Array, "... half"]]:
    """Cosine and sine of the angles of every position, in float32 or wider."""
    acc = accum_dtype(dtype)
    frequency = jnp.asarray(rotary.frequencies(head), acc)
    angle = position[..., None].astype(acc) * frequency.reshape((1,) * position.ndim + (-1,))
    return jnp.cos(angle), jnp.sin(angle)


def rotate(
    x_btnh: Float[Array, "b t n h"],
    cos_bth: Float[Array, "b t half"],
    sin_bth: Float[Array, "b t half"],
) -> Float[Array, "b t n h"]:
    """Rotates heads by the angles of their positions; features past 2 * half are unchanged."""
    half = cos_bth.shape[-1]
    cos, sin = cos_bth[:, :, None], sin_bth[:, :, None]
    first, second = x_btnh[..., :half], x_btnh[..., half : 2 * half]
    x = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    x = x.astype(x_btnh.dtype)
    return jnp.concatenate([x, x_btnh[..., 2 * half :]], axis=-1)
