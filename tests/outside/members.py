"""Members of every kind from outside the package, and a config that uses them.

A logistic prior has no closed-form KL to a Laplace posterior; lines of the reader's files begin
with a count that is not part of the text; the metric is the mean length of samples.

    python -m jvae.main --config=tests/outside/members.py --config.data.train=my.counted
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from jvae import config as configs
from jvae.api import Prior
from jvae.data.formats import READERS, Example, FileReader, Reader, Row
from jvae.data.sources import raw_lines
from jvae.data.text_rules import BadLine, decode
from jvae.evals import card
from jvae.evals.metric import METRICS, Evaluation
from jvae.latent.choice import Choice
from jvae.latent.densities import POSTERIORS, Density, Head, PosteriorKind
from jvae.latent.priors import PRIORS, PriorKind, PriorParts
from jvae.models import FAMILIES, Family, optimus


@dataclass(frozen=True)
class LogisticOptions:
    """Options of the prior `logistic`."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"scale is {self.scale}; expected more than 0")


def logistic(options: LogisticOptions, shape: tuple[int, int]) -> PriorParts:
    """Independent logistic distributions of mean 0."""

    def sample(params: Any, key_e: Key[Array, "e"], cond: Any = None) -> Float[Array, "e g z"]:
        return options.scale * jax.vmap(lambda key: jax.random.logistic(key, shape))(key_e)

    def log_prob(params: Any, z_egz: Array, cond: Any = None) -> Float[Array, "e"]:
        nats_egz = jax.scipy.stats.logistic.logpdf(z_egz / options.scale) - jnp.log(options.scale)
        return jnp.sum(nats_egz, axis=(1, 2))

    return PriorParts(Prior(sample, log_prob))


class Laplace(NamedTuple):
    """Location and log-scale of each dimension."""

    location_egz: Float[Array, "e g z"]
    log_scale_egz: Float[Array, "e g z"]


class NoOptions(NamedTuple):
    """The posterior `laplace` has none."""


def laplace(options: NoOptions, head: Head, shape: tuple[int, int]) -> Density:
    """Independent Laplace distributions."""
    affine = head((2, shape[1]), (None, "latent"))

    def read(params: Any, h_egd: Array) -> Laplace:
        stats_egcz = affine.each(params["head"], h_egd)
        return Laplace(stats_egcz[:, :, 0], stats_egcz[:, :, 1])

    def sample(params: Any, post: Laplace, key_ke: Key[Array, "k e"]) -> Float[Array, "k e g z"]:
        shape = post.location_egz.shape[1:]
        noise = jax.vmap(jax.vmap(lambda key: jax.random.laplace(key, shape)))(key_ke)
        return post.location_egz[None] + jnp.exp(post.log_scale_egz)[None] * noise

    def log_prob(params: Any, post: Laplace, z_egz: Array) -> Float[Array, "e"]:
        apart_egz = jnp.abs(z_egz - post.location_egz) * jnp.exp(-post.log_scale_egz)
        return -jnp.sum(apart_egz + post.log_scale_egz + jnp.log(2.0), axis=(1, 2))

    return Density(
        init=lambda key: {"head": affine.init(key)},
        read=read,
        sample=sample,
        log_prob=log_prob,
        mean=lambda params, post: post.location_egz,
    )


def counted(name: str, reader: Reader, notes: list[str]) -> Iterator[tuple[int, Row]]:
    """Lines such as "3 a red dog": a count of words, then the text."""
    for number, raw in raw_lines(name, reader.max_chars):
        line = decode(raw) if isinstance(raw, bytes) else raw
        yield number, line if isinstance(line, BadLine) else [Example(line.partition(" ")[2])]


def mean_length(at: Evaluation) -> list[card.Row]:
    """Mean number of words of the samples."""
    words = [len(text.split()) for text in at.samples["prior"]]
    definition = "mean number of whitespace words of the samples"
    row = card.Row("mean_length", float(np.mean(words)), "words", definition=definition)
    return [row]


PRIORS.register("logistic")(PriorKind(LogisticOptions, logistic))
POSTERIORS.register("laplace")(PosteriorKind(NoOptions, laplace))
READERS.register("counted")(FileReader(counted, suffixes=(".counted",)))
METRICS.register("mean_length")(mean_length)


def _tiny(vocab: Any, **stack: Any) -> optimus.OptimusConfig:
    base = FAMILIES["optimus"].tiny(vocab, **stack)
    return optimus.OptimusConfig(
        base.encoder,
        base.decoder,
        base.latent,
        prior=Choice("logistic", (("scale", 0.8),)),
        posterior=Choice("laplace"),
    )


def build(config: optimus.OptimusConfig) -> Any:
    """Optimus, under a name that puts this file's members through the suites of every family."""
    return optimus.build(config)


FAMILIES.register("outside")(Family(optimus.OptimusConfig, build, optimus.limits, _tiny))


def get_config(arg: str) -> ConfigDict:
    """`optimus:tiny` with the members of this file."""
    c = configs.load("optimus:tiny").unlock()
    c.name = "outside"
    c.model.family = "outside"
    c.model.prior = ConfigDict(dict(kind="logistic", scale=0.8))
    c.model.posterior = ConfigDict(dict(kind="laplace"))
    c.evals.metrics = ("mean_length",)
    return c
