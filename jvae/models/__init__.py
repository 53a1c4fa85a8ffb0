"""The systems of jvae. Each file holds one: a config dataclass, `build(config) -> TextVAE` and its
registration.
"""

from jvae import backbones  # noqa: F401 they register themselves
from jvae.latent import batch_norm, flow, gmm, vamp, vmf  # noqa: F401 so do priors and posteriors
from jvae.models import adavae, della, lm, lstm_vae, optimus, sri, t5vae
from jvae.models.family import FAMILIES, Family

__all__ = ["FAMILIES", "Family", "adavae", "della", "lm", "lstm_vae", "optimus", "sri", "t5vae"]


def family(name: str) -> Family:
    """A system by name. Raises ConfigError for an unknown one."""
    return FAMILIES[name]
