"""Priors p'(z) that are fitted to the latents of a trained model.

Each kind has its own file, which registers a `FittedKind` in `FITTED`. `fit` returns a `Fitted`.
`attach` replaces a model's own prior by it: p'(z) p(x | z) is a new model, and the estimators of
any other model apply to it.
"""

from jvae.fitted import ctrl_gen, diffusion, flow, gan, gaussian, gmm  # noqa: F401 registers them
from jvae.fitted.contract import FITTED, Density, FittedKind
from jvae.fitted.prior import (
    KEY,
    NO_SPHERE,
    Fitted,
    attach,
    fit,
    has_density,
    join,
    no_density,
)
from jvae.fitted.relabel import transfer, transfers

__all__ = [
    "FITTED",
    "KEY",
    "NO_SPHERE",
    "Density",
    "Fitted",
    "FittedKind",
    "attach",
    "fit",
    "has_density",
    "join",
    "no_density",
    "transfer",
    "transfers",
]
