"""Meshes and the one table from logical axes to them."""
