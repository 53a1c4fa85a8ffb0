"""SpaceFusion: what pulls and what pushes, whose turn it is, and the model that comes of it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import Batch, Posterior, Side
from jvae.data.encode import encode
from jvae.data.tokenizers import train_word_level
from jvae.latent import kl as kls
from jvae.latent.choice import Choice
from jvae.latent.elbo import measure
from jvae.latent.gaussian import DiagonalGaussian, Gaussian
from jvae.models import FAMILIES, space_fusion
from jvae.tree import named_leaves

VOCAB = dict(enc=23, dec=29)
rng = np.random.default_rng(0)


MARGIN = 0.9


def by_hand(response_ed, context_ed, valid_e, self_too=False):
    """The loss by loops over the valid examples."""
    most = MARGIN * np.sqrt(response_ed.shape[1])
    rows = np.flatnonzero(valid_e)

    def spread(z_ed):
        others = lambda i: [j for j in rows if self_too or j != i]  # noqa: E731
        nearest = [min(np.linalg.norm(z_ed[i] - z_ed[j]) for j in others(i)) for i in rows]
        return np.mean(np.minimum(nearest, most))

    pull = np.mean([np.linalg.norm(response_ed[i] - context_ed[i]) for i in rows])
    push = min(spread(response_ed), spread(context_ed))
    return (pull - 2 * push) / np.sqrt(response_ed.shape[1]), push


@jax.jit
def measured(response_ed, context_ed, valid_e):
    """The loss of each example, the spread of the responses, and gradients of the mean loss."""

    def mean(response_ed, context_ed):
        value_e = space_fusion.fuse(response_ed, context_ed, valid_e, MARGIN)
        return jnp.sum(value_e) / jnp.maximum(jnp.sum(valid_e), 1), value_e

    grads, value_e = jax.grad(mean, (0, 1), has_aux=True)(response_ed, context_ed)
    return value_e, space_fusion.spread(response_ed, valid_e, MARGIN), grads


VALID = np.array([1, 1, 0, 1, 1, 0, 1], bool)


def test_fusion_pulls_pairs_and_pushes_the_rest():
    z_ed, c_ed = rng.normal(size=(2, 7, 5)).astype(np.float32)
    z_ed[2] = z_ed[1]  # an empty slot is nobody's neighbour
    got_e = np.asarray(measured(z_ed, c_ed, VALID)[0])
    want, push = by_hand(z_ed, c_ed, VALID)
    np.testing.assert_allclose(got_e[VALID].mean(), want, rtol=1e-5)
    np.testing.assert_array_equal(got_e[~VALID], 0.0)
    with_itself, no_push = by_hand(z_ed, c_ed, VALID, self_too=True)
    assert push > 0.5 and no_push == 0.0 and with_itself - want > 0.4


def test_a_step_against_the_push_spreads_latents():
    """Pairs are equal, so only the push is left."""
    z_ed = 0.1 * rng.normal(size=(7, 5)).astype(np.float32)
    _, before, grads = measured(z_ed, z_ed, VALID)
    grad_ed = np.add(*grads)
    assert np.abs(grad_ed[VALID]).max() > 0.01 and not grad_ed[~VALID].any()
    moved = z_ed - 0.1 * grad_ed
    assert measured(moved, moved, VALID)[1] > 1.05 * before


def test_latents_apart_are_not_pushed_further():
    """Without a margin, the loss falls without bound in the scale of the latents."""
    z_ed = 100 * np.eye(7, 5).astype(np.float32) + 1_000 * np.eye(7, 5, -5).astype(np.float32)
    value_e, spread, grads = measured(z_ed, z_ed, VALID)
    np.testing.assert_allclose(spread, MARGIN * 5**0.5, rtol=1e-6)
    np.testing.assert_allclose(value_e[VALID], -2 * MARGIN, rtol=1e-5)
    np.testing.assert_allclose(np.add(*grads), 0.0, atol=1e-6)


@pytest.mark.parametrize("valid", [0, 1])
def test_one_example_or_none_pushes_nothing(valid):
    z_ed = np.ones((7, 5), np.float32)
    value_e, spread, grads = measured(z_ed, 3 * z_ed, np.arange(7) < valid)
    assert spread == 0.0 and (np.sum(value_e) > 0) == bool(valid)
    assert all(np.all(np.isfinite(grad)) for grad in grads)


def test_speakers_alternate_up_to_the_last_turn():
    """Rows of several texts; 9 ends the turns of the first, 8 those of the second."""
    token = [[1, 5, 9, 6, 7, 9, 5, 9, 1, 3, 8, 0], [1, 4, 9, 1, 2, 2, 8, 4, 8, 0, 0, 0]]
    segment = [[1] * 8 + [2] * 3 + [0], [1] * 3 + [2] * 6 + [0] * 3]
    kind = [[0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0]]
    side = Side(np.array(token), np.array(segment), np.zeros((2, 12), np.int32))  # pyright: ignore
    np.testing.assert_array_equal(jax.jit(space_fusion.turns)(side).type_bt, kind)


def test_turns_become_texts_with_one_start():
    plain = train_word_level(["a b c __eou__"])
    words = dataclasses.replace(plain, turns="__eou__")
    texts = ["a b __eou__ c __eou__ a", "b", "__eou__"]
    a, b, c = (int(plain.encode_batch([word])[0][1]) for word in "abc")
    ids = words.encode_batch(texts[:2])
    start, end = plain.start_id, plain.end_id
    assert ids[0].tolist() == [start, a, b, end, c, end, a, end]
    assert ids[1].tolist() == [start, b, end]
    sides, faults = encode({"dec": ["a"] * 3, "cond": texts}, dict(dec=plain, cond=words), {})
    assert list(faults) == [2] and faults[2].reason == "no tokens"
    joined, _ = encode({"dec": ["c"], "cond": texts[:1]}, dict(dec=plain, cond=words), {}, ["dec"])
    assert joined["dec"].tokens(0).tolist() == [a, b, end, c, end, a, end, c, end]


def test_kl_to_what_the_context_says():
    """Against the mean of log q - log p over draws."""
    post, cond = (Gaussian(*rng.normal(size=(2, 3, 1, 4)).astype(np.float32)) for _ in range(2))
    none: Any = lambda *args, **options: None  # noqa: E731
    posterior = Posterior(none, none, none, none, form=DiagonalGaussian())
    prior = space_fusion.prior()

    @jax.jit
    def kl_of(z_egz):
        nats = kls.kl({}, posterior, post, z_egz, prior, cond)
        return nats.nats_e, prior.log_prob({}, z_egz, cond)

    def log_density(q, z):
        scaled = (z - q.mean_egz) ** 2 / np.exp(q.log_var_egz)
        return -0.5 * np.sum(scaled + q.log_var_egz + np.log(2 * np.pi), axis=(-2, -1))

    z_kegz = rng.normal(size=(50_000, 3, 1, 4)) * np.exp(0.5 * post.log_var_egz) + post.mean_egz
    kl_e, log_p_e = kl_of(z_kegz[0].astype(np.float32))
    np.testing.assert_allclose(log_p_e, log_density(cond, z_kegz[0]), rtol=1e-4)
    want_e = np.mean(log_density(post, z_kegz) - log_density(cond, z_kegz), axis=0)
    np.testing.assert_allclose(kl_e, want_e, rtol=0.05)


@pytest.fixture(scope="module")
def model():
    config = dataclasses.replace(FAMILIES["optimus"].tiny(VOCAB), context_layers=1)
    assert FAMILIES["optimus"].limits(config)["cond"] == config.encoder.positions
    return FAMILIES["optimus"].build(config)


def batch() -> Batch:
    segment = np.array([[1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 0, 0]], np.int32)
    place = np.array([[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 0, 0]], np.int32)
    side: Any = Side(*map(jnp.asarray, (rng.integers(1, 20, (2, 6)), segment, place)))
    ids: Any = np.array([0, 1, 2, -1], np.int32)
    return Batch(side, side, side, jnp.asarray((place > 0) & (segment > 0)), ids)


def test_the_context_reads_copies_of_the_last_layers(model):
    @jax.jit
    def drawn(key):
        params = model.init(key)
        return [params[part]["layers"]["mlp"]["up"]["kernel"] for part in ("context", "encoder")]

    copies, shared = drawn(jax.random.key(0))
    np.testing.assert_array_equal(copies, shared[-1:])
    paths = named_leaves(jax.eval_shape(model.init, jax.random.key(0)))
    layers = {path.partition("layers/")[2] for path in paths if path.startswith("encoder/layers/")}
    assert {path for path in paths if path.startswith("context/")} == {
        f"context/layers/{path}" for path in layers
    }


def test_terms_of_a_batch(model):
    """Abstract: three reconstructions, a loss that couples them, a KL that comes per dimension."""
    params = jax.eval_shape(model.init, jax.random.key(0))
    run = lambda params, key: measure(model, params, batch(), key)  # noqa: E731
    terms = jax.eval_shape(run, params, jax.random.key(1))
    assert set(terms.aux) == {"context", "between", "fuse"} and model.gen.coupled
    assert {leaf.shape for leaf in terms.aux.values()} == {(4,)}
    assert terms.kl_egz is not None and terms.kl_egz.shape == (4, 1, 5)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(context_layers=3), "context_layers is 3, but the encoder has 2 layers"),
        (dict(context_layers=1, prior="gmm"), "set prior.kind to standard_normal"),
    ],
)
def test_what_does_not_go_with_a_context(changes, message):
    if "prior" in changes:
        changes = changes | dict(prior=Choice(changes["prior"]))
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(FAMILIES["optimus"].tiny(VOCAB), **changes)
