"""Latent diffusion: a denoiser over continuous noise levels, sampled in a few steps.

Noise levels, preconditioning and weights are those of Karras et al. 2022, arXiv 2206.00364 (EDM).
The samplers are DPM-Solver++(2M) and its stochastic form, Lu et al. 2022, arXiv 2211.01095, eq. 18
and appendix. Both cost one network evaluation per step, or two with guidance (Ho & Salimans 2022,
arXiv 2207.12598).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from jvae.api import Params
from jvae.fields import setting
from jvae.fitted import denoiser
from jvae.fitted.contract import FITTED, Density, FittedKind
from jvae.fitted.descent import Recipe, descend
from jvae.latent.gaussian import LOG_2PI, noise

# Noise levels for sampling and their spacing, as in EDM table 1, but with a range for latents of
# variance 1, whose signal is negligible at the highest level.
LOW, HIGH, CURVE = 0.005, 20.0, 7.0
# Log-normal noise levels for training: EDM's mean for data of variance 1, with a wider spread, so
# that the weights of distant modes, which high noise levels determine, are learned too.
LOG_MEAN, LOG_SPREAD = -0.5, 1.5
UNLABELLED = 0.1  # share of training latents with a hidden label
SAMPLERS = ("deterministic", "stochastic")
TRACES = ("none", "exact", "hutchinson")

T = TypeVar("T")  # a tree of arrays


@dataclass(frozen=True)
class DiffusionOptions:
    """Options of the fitted prior `diffusion`."""

    width: int = setting(
        0, low=0, high=2**16, help="Width of the network; 0: twice that of a latent, at least 128."
    )
    layers: int = setting(3, low=1, high=1_000, help="Layers of the network.")
    heads: int = setting(4, low=1, high=1_000, help="Attention heads, for latents with groups.")
    updates: int = setting(4_000, low=1, high=10_000_000, help="Optimizer updates of the fit.")
    batch: int = setting(512, low=1, high=2**20, help="Latents per update.")
    lr: float = setting(1e-3, above=0.0, high=10.0, help="Peak learning rate.")
    average: float = setting(0.999, low=0.0, below=1.0, help="Decay of the parameter average.")
    sampler: str = setting(
        "deterministic", choices=SAMPLERS, help="Sampler that turns noise into latents."
    )
    steps: int = setting(20, low=2, high=100_000, help="Steps of the sampler.")
    guidance: float = setting(
        1.0,
        low=0.0,
        high=1e3,
        help="Guidance weight of the label; above 1, samples no longer follow the density.",
    )
    trace: str = setting(
        "none", choices=TRACES, help="Estimator of the density; none: no likelihoods."
    )
    density_steps: int = setting(
        24,
        low=1,
        high=100_000,
        help="Integration steps of the density, four network evaluations each.",
    )
    probes: int = setting(
        4, low=1, high=10_000, help="Number of random vectors of the Hutchinson estimator."
    )

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")


def levels(steps: int) -> Float[np.ndarray, "t"]:
    """`steps` noise levels from HIGH to LOW, EDM eq. 5."""
    share = np.linspace(0.0, 1.0, steps)
    ends = [level ** (1 / CURVE) for level in (HIGH, LOW)]
    return (ends[0] + share * (ends[1] - ends[0])) ** CURVE


def build(options: DiffusionOptions, shape: tuple[int, int], labels: int) -> Density:
    """Builds the density; see `FittedKind`."""
    hidden = labels  # the label for latents without one
    table = labels + 1 if labels > 1 else 1
    heads = options.heads
    width = options.width or max(heads * -(-128 // heads), 2 * heads * -(-shape[1] // heads))
    net = denoiser.build(shape, table, width, options.layers, options.heads)

    def clean(p: Params, x_egz: Array, level_e: Array, label_e: Array) -> Float[Array, "e g z"]:
        """E[u | x] at noise level sigma, for latents of variance 1; EDM eq. 7."""
        sigma = level_e[:, None, None]
        total = sigma**2 + 1.0
        out_egz = net.apply(p, x_egz * jax.lax.rsqrt(total), jnp.log(level_e) / 4, label_e)
        return x_egz / total + sigma * jax.lax.rsqrt(total) * out_egz

    def loss(p: Params, u_bgz: Array, label_b: Array, key: Key[Array, ""]) -> Array:
        level_key, noise_key, label_key = jax.random.split(key, 3)
        count = len(u_bgz)
        level_b = jnp.exp(LOG_MEAN + LOG_SPREAD * jax.random.normal(level_key, (count,)))
        noise_bgz = level_b[:, None, None] * jax.random.normal(noise_key, u_bgz.shape)
        if labels > 1:
            hide_b = jax.random.bernoulli(label_key, UNLABELLED, (count,))
            label_b = jnp.where(hide_b, hidden, label_b)
        left_bgz = clean(p, u_bgz + noise_bgz, level_b, label_b) - u_bgz
        weight_b = (level_b**2 + 1.0) / level_b**2
        return jnp.mean(weight_b[:, None, None] * left_bgz**2)

    def fit(u_ngz: Array, label_n: Array, key: Key[Array, ""]) -> Params:
        init_key, key = jax.random.split(key)
        recipe = Recipe(options.updates, options.batch, options.lr, options.average)
        return descend(loss, jax.jit(net.init)(init_key), u_ngz, label_n, key, recipe)

    def guided(p: Params, label_e: Array) -> Callable[[Array, Array], Array]:
        """Returns (x, level) -> E[u | x, label], with the guidance weight."""

        def denoise(x_egz: Array, level: Array) -> Float[Array, "e g z"]:
            level_1 = level[None]
            with_egz = clean(p, x_egz, level_1, label_e)
            if labels == 1 or options.guidance == 1.0:
                return with_egz
            without_egz = clean(p, x_egz, level_1, jnp.full((1,), hidden))
            return without_egz + options.guidance * (with_egz - without_egz)

        return denoise

    def sample(p: Params, key_e: Key[Array, "e"], label_e: Array) -> Float[Array, "e g z"]:
        """Samples from the highest to the lowest noise level.

        Each step extrapolates from the last two denoised latents; the final one only denoises.
        """
        key_e2 = jax.vmap(jax.random.split)(key_e)
        denoise, x_egz = guided(p, label_e), _TOP * noise(key_e2[:, 0], shape)
        level_t = levels(options.steps)
        gap_t, share_t = np.log(level_t[:-1] / level_t[1:]), level_t[1:] / level_t[:-1]
        ratio_t = np.concatenate([[0.0], gap_t[1:] / (2 * gap_t[:-1])])
        added_t = np.zeros_like(share_t)
        if options.sampler == "stochastic":  # fresh noise replaces the additional noise removed
            added_t, share_t = level_t[1:] * np.sqrt(1 - share_t**2), share_t**2
        inputs_t = (level_t[:-1], share_t, ratio_t, added_t)
        inputs_t = jax.tree.map(lambda a: jnp.asarray(a, x_egz.dtype), inputs_t)

        def step(
            carry: tuple[Array, Array], at: tuple[Array, tuple[Array, Array, Array, Array]]
        ) -> tuple[tuple[Array, Array], None]:
            (x_egz, before_egz), (number, (level, share, ratio, added)) = carry, at
            now_egz = denoise(x_egz, level)
            ahead_egz = now_egz + ratio * (now_egz - before_egz)
            x_egz = share * x_egz + (1 - share) * ahead_egz
            if options.sampler == "stochastic":
                fold = lambda key: jax.random.fold_in(key, number)  # noqa: E731
                x_egz = x_egz + added * noise(jax.vmap(fold)(key_e2[:, 1]), shape)
            return (x_egz, now_egz), None

        numbers_t = jnp.arange(options.steps - 1)
        start = (x_egz, jnp.zeros_like(x_egz))
        (x_egz, _), _ = jax.lax.scan(step, start, (numbers_t, inputs_t))
        return denoise(x_egz, jnp.asarray(level_t[-1], x_egz.dtype))

    def slope(p: Params, label: Array) -> Callable[[Array, Array], Array]:
        """Returns (y, phi) -> dy/dphi of the probability flow (EDM eq. 1).

        With x = y / cos(phi) at level tan(phi), the variance of y is 1 throughout, and the slope is
        0 for Gaussian latents.
        """

        def of(y_egz: Array, phi: Array) -> Float[Array, "e g z"]:
            level_1 = jnp.tan(phi)[None]
            return -net.apply(p, y_egz, jnp.log(level_1) / 4, label[None])

        return of

    def along(rate: Callable[[T, Array], T], start: T, ends: tuple[float, float]) -> T:
        """Integrates rate(tree, phi) between two angles with the classical Runge-Kutta method."""
        gap = (ends[1] - ends[0]) / options.density_steps

        def moved(tree: T, slope: T, by: float) -> T:
            return jax.tree.map(lambda a, s: a + by * s, tree, slope)

        def step(tree: T, number: Array) -> tuple[T, None]:
            phi = ends[0] + gap * number
            first = rate(tree, phi)
            second = rate(moved(tree, first, gap / 2), phi + gap / 2)
            third = rate(moved(tree, second, gap / 2), phi + gap / 2)
            fourth = rate(moved(tree, third, gap), phi + gap)
            tree = jax.tree.map(
                lambda a, f, s, t, u: a + gap / 6 * (f + 2 * s + 2 * t + u),
                *(tree, first, second, third, fourth),
            )
            return tree, None

        numbers_t = jnp.arange(options.density_steps, dtype=jnp.float32)
        return jax.lax.scan(step, start, numbers_t)[0]

    def to_noise(p: Params, u_egz: Array, label: Array) -> Float[Array, "e g z"]:
        return along(slope(p, label), u_egz * np.cos(_ANGLES[0]), _ANGLES)

    def from_noise(p: Params, noise_egz: Array, label: Array) -> Float[Array, "e g z"]:
        return along(slope(p, label), noise_egz, (_ANGLES[1], _ANGLES[0])) / np.cos(_ANGLES[0])

    def log_prob(p: Params, u_egz: Array, label: Array) -> Float[Array, "e"]:
        """Log density by change of variables along the probability flow; Song et al. 2021, (39)."""
        flow = slope(p, label)
        tangent_kgz = _tangents(options, shape, u_egz.dtype)

        def rate(tree: tuple[Array, Array], phi: Array) -> tuple[Array, Array]:
            y_egz, _ = tree
            slope_egz, push = jax.linearize(lambda y: flow(y, phi), y_egz)

            def part(tangent_gz: Array) -> Float[Array, "e"]:
                tangent_egz = jnp.broadcast_to(tangent_gz[None], y_egz.shape)
                return jnp.sum(tangent_egz * push(tangent_egz), axis=(1, 2))

            return slope_egz, jnp.sum(jax.lax.map(part, tangent_kgz), axis=0)

        scale = np.cos(_ANGLES[0])
        start = (u_egz * scale, jnp.zeros(len(u_egz), u_egz.dtype))
        y_egz, trace_e = along(rate, start, _ANGLES)
        at_top_e = -0.5 * jnp.sum(y_egz**2 + LOG_2PI, axis=(1, 2))
        return at_top_e + trace_e + np.log(scale) * shape[0] * shape[1]

    return Density(
        fit=fit,
        sample=sample,
        log_prob=None if options.trace == "none" else log_prob,
        to_noise=to_noise,
        from_noise=from_noise,
    )


_TOP = float(np.sqrt(HIGH**2 + 1.0))  # standard deviation at level HIGH of latents of variance 1
_ANGLES = (float(np.arctan(LOW)), float(np.arctan(HIGH)))


def _tangents(options: DiffusionOptions, shape: tuple[int, int], dtype: DTypeLike) -> Array:
    """Vectors v whose sum of v v^T has expectation I, so that sum of v^T J v estimates tr(J).

    With `hutchinson` they are the same for every latent and level, so that densities are
    reproducible.
    """
    size = shape[0] * shape[1]
    if options.trace == "exact":
        flat_kd = np.eye(size)
    else:
        signs_kd = np.random.default_rng(0).integers(0, 2, (options.probes, size)) * 2 - 1
        flat_kd = signs_kd / np.sqrt(options.probes)
    return jnp.asarray(flat_kd.reshape(-1, *shape), dtype)


FITTED.register("diffusion")(
    FittedKind(
        DiffusionOptions,
        build,
        use=("sampler", "steps", "guidance", "trace", "density_steps", "probes"),
        of_labels=("guidance",),
    )
)
