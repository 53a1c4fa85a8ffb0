"""jvae: latent-variable language models in JAX, fast on TPU and GPU.

import jvae
vae = jvae.load("runs/optimus-tiny")
vae.interpolate("a man is sleeping", "two girls were dancing")
"""

import importlib
from typing import Any

__all__ = ["__version__", "export", "export_backbone", "load"]

__version__ = "0.1.0"  # of the package and of what it writes

# Modules that moved, under the names that the documentation gave them.
_MOVED = {"space": "jvae.inference", "weights": "jvae.runs.exports"}


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module 'jvae' has no attribute {name!r}")
    return importlib.import_module(_MOVED[name])


def load(folder: Any, *, seed: int = 0, base: Any = None) -> Any:
    """See `jvae.runs.loading.load`; imported when called, so that `import jvae` stays quick."""
    from jvae.runs.loading import load as load_run

    return load_run(folder, seed=seed, base=base)


def export(folder: Any, out: Any, *, adapters: bool = False) -> None:
    """See `jvae.runs.loading.export`."""
    from jvae.runs.loading import export as export_run

    export_run(folder, out, adapters=adapters)


def export_backbone(folder: Any, out: Any, role: str = "decoder") -> None:
    """See `jvae.runs.loading.export_backbone`."""
    from jvae.runs.loading import export_backbone as export_part

    export_part(folder, out, role)
