"""jvae: latent-variable language models in JAX, fast on TPU and GPU.

import jvae
vae = jvae.load("optimus-tiny")
vae.interpolate("a man is playing a guitar in a park", "two girls chased a frisbee on a beach")
"""

import importlib
from typing import Any

__all__ = ["__version__", "export", "export_backbone", "load", "train", "trim"]

__version__ = "0.1.0"  # of the package and of what it writes

# Modules that moved, under the names that the documentation gave them.
_MOVED = {"space": "jvae.inference", "weights": "jvae.runs.exports"}


def __getattr__(name: str) -> Any:
    if name == "LatentTransformer":
        from jvae import extras

        extras.require("probes", "jvae.LatentTransformer")
        return importlib.import_module("jvae.runs.latent_transformer").LatentTransformer
    if name not in _MOVED:
        raise AttributeError(f"module 'jvae' has no attribute {name!r}")
    return importlib.import_module(_MOVED[name])


def load(folder: Any, *, seed: int = 0, base: Any = None) -> Any:
    """See `jvae.runs.loading.load`; imported when called, so that `import jvae` stays quick."""
    from jvae.runs.loading import load as load_run

    return load_run(folder, seed=seed, base=base)


def train(config: Any, workdir: Any = None, **options: Any) -> Any:
    """See `jvae.cli.training.train`."""
    from jvae.cli.training import train as train_run

    return train_run(config, workdir, **options)


def export(folder: Any, out: Any, **options: Any) -> None:
    """See `jvae.runs.loading.export`."""
    from jvae.runs.loading import export as export_run

    export_run(folder, out, **options)


def export_backbone(folder: Any, out: Any, role: str = "decoder") -> None:
    """See `jvae.runs.loading.export_backbone`."""
    from jvae.runs.loading import export_backbone as export_part

    export_part(folder, out, role)


def trim(folder: Any, out: Any, texts: Any) -> Any:
    """See `jvae.runs.trim.trim`."""
    from jvae.runs.trim import trim as trim_decoder

    return trim_decoder(folder, out, texts)
