"""Priors p'(z) that are fitted to the latents of a trained model.

A member is one file that registers a `FittedKind` in `FITTED`. `fit` gives a `Fitted`, which
`attach` puts in the place of a model's own prior: p'(z) p(x | z) is a new model, measured by the
estimators of any other.
"""

from jvae.fitted import diffusion, flow, gaussian, gmm  # noqa: F401 they register themselves
from jvae.fitted.contract import FITTED, Density, FittedKind
from jvae.fitted.prior import KEY, NO_SPHERE, Fitted, attach, fit, has_density, join

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
]
