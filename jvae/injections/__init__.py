"""Injections of a latent into a decoder, each written once for all backbones that support it."""
