"""The model families of jvae.

Each family has its own file with a config dataclass, `build(config) -> TextVAE` and the
registration.
"""

from jvae import backbones  # noqa: F401 importing registers them
from jvae.latent import batch_norm, flow, gmm, vamp, vmf  # noqa: F401 priors and posteriors too
from jvae.models import adavae, della, lm, lstm_vae, optimus, sri, t5vae
from jvae.models.family import FAMILIES, Family

__all__ = ["FAMILIES", "Family", "adavae", "della", "lm", "lstm_vae", "optimus", "sri", "t5vae"]


def family(name: str) -> Family:
    """Returns a model family by name. Raises ConfigError for an unknown one."""
    return FAMILIES[name]
