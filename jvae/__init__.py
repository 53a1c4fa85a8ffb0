"""jvae: latent-variable language models in JAX, fast on TPU and GPU.

import jvae
vae = jvae.load("runs/optimus-tiny")
vae.interpolate("a man is sleeping", "two girls were dancing")
"""

from typing import Any

__all__ = ["load"]


def load(folder: Any, *, seed: int = 0) -> Any:
    """See `jvae.loading.load`; imported when called, so that `import jvae` stays quick."""
    from jvae.loading import load as load_run

    return load_run(folder, seed=seed)
