"""A fitted prior as a `jvae.api.Prior` of the model it was fitted to."""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int, Key

from jvae.api import SPHERE, Cond, Params, Prior, TextVAE, draw_keys, has_latent
from jvae.errors import ConfigError, InputError
from jvae.fields import Field, fields_of
from jvae.fitted.contract import FITTED, Density, density
from jvae.latent import mixture, short_run
from jvae.parallel import mesh as meshes

KEY = "fitted"  # key of the fitted parameters among those of a model
LEAST_SCALE = 1e-6  # minimum scale, for dimensions that do not vary
NO_SPHERE = (
    "the latents of this model have length 1 (model.posterior.kind=vmf); a fitted prior would have "
    "none of its mass there. Use its own prior, or fit one to a model with another posterior"
)
LEAST_OF_A_LABEL = 2  # minimum sentences per label
CHUNK, FEWEST = (
    1_024,
    8,
)  # maximum latents mapped at once, and the size to which smaller batches are padded


@dataclass(frozen=True, eq=False)
class Fitted:
    """A prior fitted to latents (G, Z), with its parameters.

    params: `shift_gz` and `scale_gz` of the standardisation, `log_share_c` (log frequencies of the
      labels) and `density`, the parameters of the kind.
    about: what the prior was fitted to, as JSON-compatible values.
    """

    name: str
    kind: str
    options: Any
    shape: tuple[int, int]
    labels: tuple[str, ...]  # empty if fitted without labels
    params: Params = field(repr=False)
    about: dict[str, Any] = field(default_factory=dict, repr=False)

    def label_of(self, label: str | int | None) -> int | None:
        """The index of a label, given as its text or as a whole number that reads the same. Raises:
        InputError for an unknown label.
        """
        if label is None:
            return None
        label = str(label)
        if not self.labels:
            raise InputError(
                f"label is {label!r}, but prior {self.name!r} was fitted without labels; fit one "
                "with --mode=prior --prior.label"
            )
        if label not in self.labels:
            near = difflib.get_close_matches(label, self.labels, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise InputError(
                f"label {label!r} is unknown to prior {self.name!r}{hint} "
                f"Known: {', '.join(self.labels[:20])}"
            )
        return self.labels.index(label)

    def using(self, **options: float | str) -> "Fitted":
        """The same prior with other values of the options that may change after fitting, such as
        `steps`.

        Raises: ConfigError for an option that is fixed by the fit or does not exist, or for a value
          outside its range.
        """
        allowed, of_labels = FITTED[self.kind].use, FITTED[self.kind].of_labels
        for name in options:
            if name not in allowed:
                raise ConfigError(
                    f"--prior.{name}: {self.kind} priors have no option of that name that can "
                    f"change after the fit; options: {', '.join(allowed) or 'none'}"
                )
            if name in of_labels and not self.labels:
                raise ConfigError(
                    f"--prior.{name} has no effect: prior {self.name!r} was fitted without labels"
                )
        fields = fields_of(type(self.options))
        for name, value in options.items():
            field = fields[name]
            if isinstance(field, Field) and (why := field.problem(value)):
                raise ConfigError(f"prior.{name}={value!r}: expected {why}")
        return dataclasses.replace(self, options=dataclasses.replace(self.options, **options))

    def prior(self, label: str | int | None = None) -> Prior:
        """Returns p'(z) or p'(z | label); its parameters are under `params[KEY]`, see `join`.

        Raises: InputError for an unknown label.
        """
        return _prior(self.kind, self.options, self.shape, len(self.labels), self.label_of(label))

    def maps(self, label: str | int | None = None) -> "Maps | None":
        """Maps to standard normal noise and back; None for a kind without them.

        Raises: InputError for an unknown label, or if there are several and none is given.
        """
        latent_density = density(self.kind, self.options, self.shape, max(len(self.labels), 1))
        if latent_density.to_noise is None:
            return None
        number = self.label_of(label)
        if number is None and len(self.labels) > 1:
            raise InputError(
                f"prior {self.name!r} maps latents to noise by label; add --label=... (label=... "
                f"in Python), one of {', '.join(self.labels[:20])}"
            )
        return Maps(latent_density, self.params, number or 0)


@dataclass(frozen=True)
class Maps:
    """Maps latents to N(0, I) noise and back with a fitted prior."""

    density: Density
    params: Params
    label: int

    def to_noise(self, z_egz: Float[np.ndarray, "e g z"]) -> Float[np.ndarray, "e g z"]:
        """Maps latents to noise."""
        params = self.params
        u_egz = standardised(params, z_egz)
        assert self.density.to_noise is not None
        return mapped(self.density.to_noise, params["density"], u_egz, self.label)

    def from_noise(self, u_egz: Float[np.ndarray, "e g z"]) -> Float[np.ndarray, "e g z"]:
        """Maps noise to latents."""
        params = self.params
        assert self.density.from_noise is not None
        u_egz = mapped(self.density.from_noise, params["density"], u_egz, self.label)
        return u_egz * params["scale_gz"][None] + params["shift_gz"][None]


def standardised(params: Params, z_egz: Float[np.ndarray, "e g z"]) -> Float[np.ndarray, "e g z"]:
    """Standardises latents to mean 0 and variance 1, as `Density` expects them."""
    return (z_egz - params["shift_gz"][None]) / params["scale_gz"][None]


def mapped(
    function: Callable[..., Array], params: Params, u_egz: Float[np.ndarray, "e g z"], label: int
) -> np.ndarray:
    """Applies function(params, u, label) of a `Density`, compiled for few batch sizes."""
    parts = []
    for begin in range(0, len(u_egz), CHUNK):
        part = u_egz[begin : begin + CHUNK]
        size = min(CHUNK, max(FEWEST, 1 << (len(part) - 1).bit_length()))
        full = np.concatenate([part, np.repeat(part[:1], size - len(part), axis=0)])
        parts.append(np.asarray(_mapped(function, params, full, label))[: len(part)])
    return np.concatenate(parts)


@functools.partial(jax.jit, static_argnames=("function",))
def _mapped(
    function: Callable[[Params, Array, Array], Array], params: Params, u_egz: Array, label: Array
) -> Array:
    return function(params, u_egz, label)


@functools.cache
def _prior(
    kind: str, options: Any, shape: tuple[int, int], labels: int, label: int | None
) -> Prior:
    """The functions of a prior; equal arguments return the same object, to avoid recompilation."""
    latent_density = density(kind, options, shape, max(labels, 1))
    fixed_label = label if labels > 1 else 0  # None: a mixture over labels

    def sample(params: Params, key_e: Key[Array, "e"], cond: Cond = None) -> Float[Array, "e g z"]:
        del cond
        p = params[KEY]
        key_e2 = draw_keys(key_e)
        if fixed_label is None:
            draw = lambda key: jax.random.categorical(key, p["log_share_c"])  # noqa: E731
            label_e = jax.vmap(draw)(key_e2[:, 0])
        else:
            label_e = jnp.full(key_e.shape, fixed_label)
        u_egz = latent_density.sample(p["density"], key_e2[:, 1], label_e)
        return u_egz * p["scale_gz"][None] + p["shift_gz"][None]

    def log_prob(params: Params, z_egz: Array, cond: Cond = None) -> Float[Array, "e"]:
        del cond
        if latent_density.log_prob is None:
            raise ConfigError(f"this prior has no density: {no_density(kind)}")
        p, log_density = params[KEY], latent_density.log_prob
        u_egz = (z_egz - p["shift_gz"][None]) / p["scale_gz"][None]
        if fixed_label is None:
            nats_of = lambda c: log_density(p["density"], u_egz, c) + p["log_share_c"][c]  # noqa: E731
            nats_e = logsumexp(jax.lax.map(nats_of, jnp.arange(labels)), axis=0)
        else:
            nats_e = log_density(p["density"], u_egz, jnp.asarray(fixed_label))
        return nats_e - jnp.sum(jnp.log(p["scale_gz"]))

    return Prior(sample, log_prob)


def no_density(kind: str) -> str:
    """The reason why a kind of prior may have no density, and the remedy."""
    if "trace" in FITTED[kind].use:
        return "name a trace estimator, such as --prior.trace=exact"
    return f"priors of kind {kind} can only be sampled; fit another kind for likelihoods"


def has_density(fitted: Fitted) -> bool:
    """Whether log p'(z) is available, as needed for likelihoods under the prior."""
    latent_density = density(fitted.kind, fitted.options, fitted.shape, max(len(fitted.labels), 1))
    return latent_density.log_prob is not None


def fit(
    kind: str,
    options: Any,
    z_ngz: Float[np.ndarray, "n g z"],
    key: Key[Array, ""],
    label_n: Int[np.ndarray, "n"] | None = None,
    *,
    labels: Sequence[str] = (),
    name: str = "",
    mesh: jax.sharding.Mesh | None = None,
) -> Fitted:
    """Fits a prior to latents, which are standardised internally.

    Args:
      label_n: index of each latent's label in `labels`.
      mesh: the devices over which batches of latents are sharded.
    Raises: InputError for latents that cannot be used for fitting, and if the fit does not
      converge; ConfigError for an unknown kind,
      or one that needs labels.
    """
    z_ngz = np.asarray(z_ngz)
    shape = (int(z_ngz.shape[1]), int(z_ngz.shape[2]))
    if len(z_ngz) < 2 or not shape[0] * shape[1]:
        raise InputError(
            f"latents of shape {z_ngz.shape} cannot be fitted with a prior; expected at least 2 "
            "latents"
        )
    if not np.isfinite(z_ngz).all():
        raise InputError("a latent holds a value that is not finite; no prior can be fitted to it")
    if FITTED[kind].labelled and len(labels) < 2:
        raise ConfigError(
            f"a {kind} prior needs two labels or more: add --prior.label, and read labels "
            "with data.label"
        )
    if label_n is None:
        label_n = np.zeros(len(z_ngz), np.int32)
    count_c = np.bincount(label_n, minlength=max(len(labels), 1))
    if count_c.min() < LEAST_OF_A_LABEL:
        few = labels[int(count_c.argmin())]
        raise InputError(
            f"label {few!r} has {count_c.min()} latents; expected 2 or more per label. Read more "
            "sentences (--prior.sentences), or leave out the label"
        )
    shift_gz = z_ngz.mean(axis=0, dtype=np.float64)
    scale_gz = np.maximum(z_ngz.std(axis=0, dtype=np.float64), LEAST_SCALE)
    u_ngz = ((z_ngz - shift_gz[None]) / scale_gz[None]).astype(np.float32)
    latent_density = density(kind, options, shape, max(len(labels), 1))
    with meshes.inside(mesh):
        fitted = latent_density.fit(jnp.asarray(u_ngz), jnp.asarray(label_n, jnp.int32), key)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fitted)):
        raise InputError(
            f"the {kind} prior did not converge: its parameters are not finite. The standardised "
            f"latents reach {np.abs(u_ngz).max():.3g}; look for outliers, or fit another kind"
        )
    params = {
        "shift_gz": shift_gz.astype(np.float32),
        "scale_gz": scale_gz.astype(np.float32),
        "log_share_c": np.log(count_c / count_c.sum()).astype(np.float32),
        "density": jax.tree.map(np.asarray, fitted),
    }
    return Fitted(name or kind, kind, options, shape, tuple(labels), params)


def join(params: Params, fitted: Fitted) -> Params:
    """The parameters of a model together with those of a fitted prior, on the same devices."""
    mesh = meshes.mesh_of(params)
    prior_params = jax.tree.map(jnp.asarray, fitted.params)
    return params | {KEY: prior_params if mesh is None else meshes.everywhere(prior_params, mesh)}


def attach(model: TextVAE, fitted: Fitted, label: str | int | None = None) -> TextVAE:
    """Returns the model p'(z) p(x | z); use it with the parameters that `join` returns.

    A sampler keeps its chains, whose target still contains the model's own prior; its likelihood
    bounds use the new prior in their defensive mixture, and the baseline of its metrics draws from
    the new prior.

    Raises: ConfigError for a language model or latents on a sphere; InputError for an unknown label
      or a prior for latents of another shape.
    """
    if not has_latent(model):
        raise ConfigError("a language model has no latent, so no prior can be fitted to it")
    if model.post.support == SPHERE:
        raise ConfigError(NO_SPHERE)
    if fitted.shape != model.latent_shape:
        raise InputError(
            f"prior {fitted.name!r} was fitted to latents of shape {fitted.shape}; those of this "
            f"model have shape {model.latent_shape}"
        )
    prior, post = fitted.prior(label), model.post
    if post.sampler is not None and post.sampler.proposal is not None:
        sampler = post.sampler
        proposal = _with_prior(prior, sampler.metric)
        baseline = short_run.from_prior(model.gen, prior, sampler.config)
        post = post._replace(sampler=sampler._replace(proposal=proposal, baseline=baseline))
    return model._replace(prior=prior, post=post)


_with_prior = functools.cache(mixture.with_prior)
