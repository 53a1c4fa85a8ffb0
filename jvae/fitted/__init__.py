"""Priors p'(z) that are fitted to the latents of a trained model.

A member is one file that registers a `FittedKind` in `FITTED`. `fit` gives a `Fitted`, which
`attach` puts in the place of a model's own prior: p'(z) p(x | z) is a new model, measured by the
estimators of any other.
"""

from jvae.fitted import ctrl_gen, diffusion, flow, gan, gaussian, gmm  # noqa: F401 they register
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
