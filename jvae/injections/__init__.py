"""How a latent reaches a decoder, each way once for all backbones that have what it needs."""
