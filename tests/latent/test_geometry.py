"""Geometry of the latent space, against closed forms and brute force."""

import numpy as np
import pytest

from jvae.inference.neighbors import nearest
from jvae.latent import geometry

rng = np.random.default_rng(0)
A, B = rng.normal(size=(2, 3, 2, 4)).astype(np.float32)


@pytest.mark.parametrize("how", geometry.HOW)
def test_both_ends_are_on_the_way(how):
    z_etgz = geometry.between(A, B, 5, how)
    assert z_etgz.shape == (3, 5, 2, 4)
    np.testing.assert_allclose(z_etgz[:, 0], A, atol=1e-6)
    np.testing.assert_allclose(z_etgz[:, -1], B, atol=1e-6)


def test_an_arc_keeps_length_and_pace():
    unit_a, unit_b = (x / np.linalg.norm(x, axis=(1, 2), keepdims=True) for x in (A, B))
    z_etd = geometry.arc(2 * unit_a, 2 * unit_b, 7).reshape(3, 7, -1)
    np.testing.assert_allclose(np.linalg.norm(z_etd, axis=2), 2, atol=1e-5)
    step_et = np.arccos(np.sum(z_etd[:, 1:] * z_etd[:, :-1], axis=2) / 4)
    whole_e = np.arccos(np.sum(unit_a * unit_b, axis=(1, 2)))
    np.testing.assert_allclose(step_et, np.tile(whole_e[:, None] / 6, 6), atol=1e-3)


def test_an_arc_without_a_plane_is_a_line():
    for a, b in ((A, 3 * A), (A, -A), (np.zeros_like(A), B)):
        np.testing.assert_allclose(geometry.arc(a, b, 4), geometry.line(a, b, 4), atol=1e-5)


def test_one_dimension_moves_alone():
    z_dtgz = geometry.axes(A[0], [1, 6], (-2.0, 0.0, 1.0))
    moved = z_dtgz - A[0]
    want = np.zeros((2, 3, 2, 4))
    want[0, :, 0, 1] = want[1, :, 1, 2] = (-2, 0, 1)
    np.testing.assert_allclose(moved, want, atol=1e-6)


def test_attribute_vectors():
    shift_gz = rng.normal(size=(2, 4)).astype(np.float32)
    vector_gz = geometry.direction(A, A + shift_gz)
    np.testing.assert_allclose(vector_gz, shift_gz, atol=1e-6)
    assert geometry.agreement(vector_gz, A, A + 100 * shift_gz) == 1
    assert geometry.agreement(vector_gz, A + 100 * shift_gz, A) == 0
    assert geometry.agreement(vector_gz, A, A) == 0.5
    low, high = (np.tensordot(x, vector_gz, axes=2) for x in (A, B))
    pairs = np.mean([(h > l) + 0.5 * (h == l) for h in high for l in low])  # noqa: E741
    assert geometry.agreement(vector_gz, A, B) == pytest.approx(pairs)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_nearest_is_what_brute_force_finds(metric):
    query_egz, corpus_ngz = rng.normal(size=(4, 2, 3)), rng.normal(size=(9, 2, 3))
    corpus_ngz[7] = corpus_ngz[2]  # a tie: the first comes first
    places, distances = nearest(query_egz, corpus_ngz, 5, metric)
    for q, place, distance in zip(query_egz, places, distances, strict=True):
        if metric == "cosine":
            norms = np.linalg.norm(corpus_ngz, axis=(1, 2)) * np.linalg.norm(q)
            corpus_distances = 1 - np.sum(q * corpus_ngz, axis=(1, 2)) / norms
        else:
            corpus_distances = np.linalg.norm(q - corpus_ngz, axis=(1, 2))
        want = np.argsort(corpus_distances, kind="stable")[:5]
        np.testing.assert_allclose(distance, corpus_distances[want], atol=1e-9)
        assert (
            set(place) == set(want) and list(place).index(2) < list(place).index(7)
            if ({2, 7} <= set(want))
            else True
        )
    assert nearest(query_egz, corpus_ngz, 20, metric)[0].shape == (4, 9)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: geometry.between(A, B, 1), "steps is 1"),
        (lambda: geometry.between(A, B, 3, "cubic"), "how is 'cubic'"),
        (lambda: geometry.axes(A[0], [8]), "dimension 8: the latent has dimensions 0 to 7"),
        (lambda: geometry.direction(A[:0], B), "0 and 3 latents"),
        (lambda: nearest(A, B, 0), "0 neighbors"),
        (lambda: nearest(A, B, 1, "city"), "metric is 'city'"),
    ],
)
def test_what_cannot_be_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_latents_are_brought_to_the_sphere_vector_by_vector():
    z_egz = np.array([[[3.0, 4.0], [0.0, -2.0]], [[0.0, 0.0], [1.0, 0.0]]])
    want = [[[0.6, 0.8], [0.0, -1.0]], [[0.0, 0.0], [1.0, 0.0]]]
    np.testing.assert_allclose(geometry.on_sphere(z_egz), want, rtol=1e-6)
