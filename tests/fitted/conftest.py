"""Mixtures whose density is known, and a test of two samples."""

import functools
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp


class Mixture(NamedTuple):
    """Two Gaussians of full covariance, 0.3 and 0.7 of the mass, in D dimensions."""

    mean_kd: np.ndarray
    factor_kdd: np.ndarray
    weight_k: np.ndarray

    def sample(self, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(z_n1d, component_n)"""
        rng = np.random.default_rng(seed)
        k_n = rng.choice(2, n, p=self.weight_k)
        noise_nd = rng.normal(size=(n, self.mean_kd.shape[1]))
        z_nd = self.mean_kd[k_n] + np.einsum("nde,ne->nd", self.factor_kdd[k_n], noise_nd)
        return z_nd[:, None].astype(np.float32), k_n

    def each(self, z_n1d: np.ndarray) -> np.ndarray:
        """log density of each component, (n, 2)."""
        nats = []
        for mean_d, factor_dd in zip(self.mean_kd, self.factor_kdd, strict=True):
            noise_dn = np.linalg.solve(factor_dd, (z_n1d[:, 0] - mean_d).T.astype(np.float64))
            log_det = np.sum(np.log(np.abs(np.diagonal(factor_dd))))
            nats.append(-0.5 * np.sum(noise_dn**2 + np.log(2 * np.pi), axis=0) - log_det)
        return np.stack(nats, axis=1)

    def log_prob(self, z_n1d: np.ndarray) -> np.ndarray:
        return logsumexp(self.each(z_n1d) + np.log(self.weight_k), axis=1)


@functools.cache
def _mixture(width: int) -> Mixture:
    rng = np.random.default_rng(1)
    factor_kdd = np.stack(
        [0.5 * np.eye(width) + np.tril(0.3 * rng.normal(size=(width, width)), -1) / width**0.5] * 2
    )
    factor_kdd[1] *= 1.5
    mean_kd = np.zeros((2, width))
    mean_kd[:, :2] = [[-2.0, 1.0], [2.0, 0.0]]
    return Mixture(mean_kd, factor_kdd, np.array([0.3, 0.7]))


def _excess(prior, params, mixture, n: int = 20_000) -> float:
    """Nats by which -log p' of fresh draws is above their -log p, whose mean is the entropy."""
    z_n1d, _ = mixture.sample(n, seed=99)
    log_prob = jax.jit(prior.log_prob)
    nats = [np.asarray(log_prob(params, jnp.asarray(z))) for z in np.split(z_n1d, 10)]
    return float(np.mean(mixture.log_prob(z_n1d) - np.concatenate(nats)))


def _energy_p(a_nd: np.ndarray, b_nd: np.ndarray, times: int = 400, seed: int = 0) -> float:
    """p of the energy distance of two samples of one size under permutations.

    Source: Szekely & Rizzo 2013.
    """
    both_nd = np.concatenate([a_nd, b_nd]).astype(np.float64)
    square_n = np.sum(both_nd**2, axis=1)
    square_nn = square_n[:, None] + square_n[None] - 2 * both_nd @ both_nd.T
    distance_nn = np.sqrt(np.maximum(square_nn, 0.0))
    sign_n = np.concatenate([np.ones(len(a_nd)), -np.ones(len(b_nd))]) / len(a_nd)
    rng = np.random.default_rng(seed)
    sign_nt = np.stack([sign_n, *(rng.permutation(sign_n) for _ in range(times))], axis=1)
    energy_t = -np.sum(sign_nt * (distance_nn @ sign_nt), axis=0)
    return float(np.mean(energy_t >= energy_t[0]))


@pytest.fixture(scope="session")
def toys():
    return types.SimpleNamespace(mixture=_mixture, excess=_excess, energy_p=_energy_p)
