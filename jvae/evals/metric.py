"""Register your own evaluation metrics by name.

    @METRICS.register("mean_length")
    def mean_length(at: Evaluation) -> list[Row]: ...

`evals.metrics=mean_length` measures it and appends its rows to those of every evaluation. Each row
must have a `definition`, which reports print, unless `jvae.evals.definitions` has one.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from jvae.api import Batch, Params
from jvae.data.dataset import Dataset
from jvae.evals.card import Row
from jvae.evals.latent import PosteriorSet
from jvae.evals.likelihood import LikelihoodResult
from jvae.evals.settings import EvalConfig
from jvae.inference.text_vae import LoadedVAE
from jvae.registry import Registry
from jvae.runs.build import Run


class Evaluation(NamedTuple):
    """The data available to a metric."""

    run: Run
    params: Params
    config: EvalConfig
    data: Dataset  # the split
    ids: np.ndarray  # the sentences of `data` that are decoded and scored
    batches: Callable[[], Iterator[Batch]]  # batches of these sentences, on the devices
    key: jax.Array
    likelihood: LikelihoodResult
    posteriors: PosteriorSet | None  # None without a latent
    vae: LoadedVAE
    samples: dict[str, list[str]]  # texts by kind: prior, prior_greedy, reconstructions, ...


Metric = Callable[[Evaluation], list[Row]]
METRICS: Registry[Metric] = Registry("metric", "evals.metrics")


def wanted(config: EvalConfig) -> list[str]:
    """Names of the metrics a config requests, those enabled by their own settings first.

    Raises: ConfigError for an unknown name.
    """
    switched = {
        "prior_bound": bool(config.prior_samples),
        "refined_bound": bool(config.refine_steps),
        "mauve": bool(config.features),
        "external_perplexity": bool(config.external),
        "similarity": bool(config.similarity),
    }
    names: dict[str, None] = dict.fromkeys(name for name, on in switched.items() if on)
    for name in config.metrics:
        METRICS[name]
        names[name] = None
    return list(names)
