"""The latent space as a tool: encode, edit and decode text."""
