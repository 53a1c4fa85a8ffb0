"""jvae: latent-variable language models in JAX, fast on TPU and GPU.

import jvae
vae = jvae.load("runs/optimus-tiny")
vae.interpolate("a man is sleeping", "two girls were dancing")
"""

from typing import Any

__all__ = ["export", "load"]


def load(folder: Any, *, seed: int = 0) -> Any:
    """See `jvae.loading.load`; imported when called, so that `import jvae` stays quick."""
    from jvae.loading import load as load_run

    return load_run(folder, seed=seed)


def export(folder: Any, out: Any) -> None:
    """See `jvae.loading.export`."""
    from jvae.loading import export as export_run

    export_run(folder, out)
