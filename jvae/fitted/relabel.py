"""Moves latents of texts to another label with a fitted prior.

A latent is mapped to noise with its own label, and that noise to a latent with the wanted label.
Properties that the label does not determine are kept. With one Gaussian per label this is the
affine map between the two. A kind may define its own map that does not need the current label
(`Density.moved`).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from jvae.errors import InputError, InputTypeError
from jvae.fitted.contract import Density, density
from jvae.fitted.prior import Fitted, mapped, standardised


def transfers(fitted: Fitted) -> bool:
    """Whether latents can be moved to another label with a prior."""
    latent_density = density(fitted.kind, fitted.options, fitted.shape, max(len(fitted.labels), 1))
    return latent_density.moved is not None or latent_density.to_noise is not None


def transfer(
    fitted: Fitted,
    z_ngz: Float[np.ndarray, "n g z"],
    label: str | int,
    labels: Sequence[str | int] | None = None,
    strength: float = 1.0,
) -> Float[np.ndarray, "n g z"]:
    """Moves latents to another label; latents known to have it already are unchanged.

    Args:
      labels: the current label of each latent; by default, if there is a density, the label with
        the highest density times frequency.
      strength: multiple of the step from a latent to its target.
    Raises: InputError for an unknown label, a kind of prior that only samples, or current labels
      that are needed but neither given nor computable.
    """
    target = fitted.label_of(label)
    if target is None:
        raise InputError(f"to which label? Expected one of {', '.join(fitted.labels[:20])}")
    latent_density = density(fitted.kind, fitted.options, fitted.shape, len(fitted.labels))
    if not transfers(fitted):
        raise InputError(
            f"prior {fitted.name!r} is of kind {fitted.kind}, which cannot move latents to "
            "another label; fit one of kind gaussian, flow, diffusion or ctrl_gen"
        )
    if isinstance(labels, str):
        raise InputTypeError(f"labels={labels!r}: expected a list with one label per latent")
    if labels is not None and len(labels) != len(z_ngz):
        raise InputError(
            f"{len(labels)} current labels for {len(z_ngz)} latents; expected one per latent"
        )
    number_n = _numbers(fitted, latent_density, z_ngz, labels)
    moved_ngz = z_ngz.astype(np.float32)
    for number in np.setdiff1d(number_n, [target]):
        at_n = number_n == number
        moved_ngz[at_n] = _moved(fitted, latent_density, z_ngz[at_n], number, target)
    return (z_ngz + strength * (moved_ngz - z_ngz)).astype(np.float32)


def _moved(
    fitted: Fitted, latent_density: Density, z_ngz: np.ndarray, number: int, target: int
) -> Float[np.ndarray, "n g z"]:
    """Moves latents of one label to another."""
    if latent_density.moved is None:
        source, goal = (fitted.maps(fitted.labels[label]) for label in (number, target))
        assert source is not None and goal is not None
        return goal.from_noise(source.to_noise(z_ngz))
    u_ngz = mapped(
        latent_density.moved, fitted.params["density"], standardised(fitted.params, z_ngz), target
    )
    return u_ngz * fitted.params["scale_gz"][None] + fitted.params["shift_gz"][None]


def _numbers(
    fitted: Fitted, latent_density: Density, z_ngz: np.ndarray, labels: Sequence[str | int] | None
) -> Int[np.ndarray, "n"]:
    """The number of each latent's current label; -1 if the kind does not need it."""
    if labels is not None:
        return np.array([fitted.label_of(label) for label in labels], np.int64)
    if not len(z_ngz) or (latent_density.moved is not None and latent_density.log_prob is None):
        return np.full(len(z_ngz), -1)
    if latent_density.log_prob is None:
        raise InputError(
            f"prior {fitted.name!r} cannot infer the labels of texts without a density: add "
            "--prior.trace=exact (with_prior(..., trace='exact') in Python), or pass the labels "
            "as labels=[...] in Python"
        )
    u_ngz, params = standardised(fitted.params, z_ngz), fitted.params
    nats_cn = np.stack(
        [
            mapped(latent_density.log_prob, params["density"], u_ngz, c)
            for c in range(len(fitted.labels))
        ]
    )
    return np.argmax(nats_cn + params["log_share_c"][:, None], axis=0)
