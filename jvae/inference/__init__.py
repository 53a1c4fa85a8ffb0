"""Uses a trained model on text: encode, edit, decode, score."""

from jvae.latent import geometry as lines  # documented as `jvae.space.lines`

__all__ = ["lines"]
