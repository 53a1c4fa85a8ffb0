"""The model and the example sentences of a demo."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jvae.api import has_latent
from jvae.demo import examples
from jvae.demo.examples import Examples
from jvae.errors import ConfigError, JvaeError
from jvae.inference.text_vae import LoadedVAE
from jvae.runs import loading, model_names, priors

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Demo:
    """A model with example sentences.

    priors: the labels of each prior fitted to the model, by name.
    """

    name: str
    vae: LoadedVAE
    examples: Examples
    priors: Mapping[str, tuple[str, ...]]

    @property
    def about(self) -> str:
        """Sizes of the model in one line."""
        return repr(self.vae).strip("<>").partition(": ")[2]

    @property
    def has_latent(self) -> bool:
        return has_latent(self.vae.model)

    @cached_property
    def mean_egz(self) -> Float[np.ndarray, "e g z"]:
        """The posterior means of the example sentences."""
        return self.vae.encode(self.examples.texts, truncate=True)

    @cached_property
    def spread_d(self) -> Float[np.ndarray, "d"]:
        """The standard deviation of each dimension of the flattened latent over the examples."""
        return self.mean_egz.reshape(len(self.mean_egz), -1).std(axis=0)


def load(name: str, corpus: str = "", seed: int = 0) -> Demo:
    """Loads a model as `jvae.load` does.

    Args:
      corpus: a file of example sentences; by default those of the run's test split.
    Raises: JvaeError as in `jvae.load`; ConfigError for a model that reads a source text.
    """
    folder = model_names.folder_of(name)
    vae = loading.load(folder, seed=seed)
    if vae.conditional:
        raise ConfigError(
            f"{name}: the demo is for models without a source text; use --mode=sample and "
            "--mode=reconstruct of python -m jvae.main"
        )
    title = folder.name if Path(name).expanduser().exists() else name
    return Demo(title, vae, examples.read(vae, folder, corpus), _priors(vae, folder))


def _priors(vae: LoadedVAE, folder: Path) -> dict[str, tuple[str, ...]]:
    labels = {}
    for name in priors.names(folder):
        try:
            assert vae.open_prior is not None
            labels[name] = vae.open_prior(name).labels
        except JvaeError as error:
            log.warning("left out of the demo: %s", error)
    return labels
