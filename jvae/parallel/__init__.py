"""Device meshes, sharding rules and multi-process helpers."""
