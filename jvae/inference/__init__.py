"""A trained model as a tool on text: encode, edit, decode, score."""

from jvae.latent import geometry as lines  # `jvae.space.lines`, its documented name

__all__ = ["lines"]
