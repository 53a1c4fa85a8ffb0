"""jvae: latent-variable language models in JAX, fast on TPU and GPU.

import jvae
vae = jvae.load("optimus-tiny")
vae.interpolate("a man is playing a guitar in a park", "two girls chased a frisbee on a beach")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jvae.cli.training import train
    from jvae.runs.latent_transformer import LatentTransformer
    from jvae.runs.loading import export, export_backbone, load
    from jvae.runs.trim import trim

__all__ = [
    "LatentTransformer",
    "__version__",
    "export",
    "export_backbone",
    "load",
    "train",
    "trim",
]

__version__ = "0.1.0"  # of the package and of what it writes

# Where the names above are defined; imported when first used, so that `import jvae` stays quick.
_HOMES = {
    "LatentTransformer": "jvae.runs.latent_transformer",
    "export": "jvae.runs.loading",
    "export_backbone": "jvae.runs.loading",
    "load": "jvae.runs.loading",
    "train": "jvae.cli.training",
    "trim": "jvae.runs.trim",
}
# Modules that moved, under the names that the documentation gave them.
_MOVED = {"space": "jvae.inference", "weights": "jvae.runs.exports"}


def __getattr__(name: str) -> Any:
    if name in _MOVED:
        return importlib.import_module(_MOVED[name])
    if name not in _HOMES:
        raise AttributeError(f"module 'jvae' has no attribute {name!r}")
    if name == "LatentTransformer":
        from jvae import extras

        extras.require("probes", "jvae.LatentTransformer")
    globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return globals()[name]
