"""Keeps compiled programs between commands."""

import os

import jax

from jvae.data.corpus import cache_dir
from jvae.errors import ConfigError


def keep() -> None:
    """Caches compiled programs next to prepared data, unless JAX already has a cache directory."""
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    try:
        folder = cache_dir("") / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
    except (ConfigError, OSError):
        return  # compiled again instead
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
