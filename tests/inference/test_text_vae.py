"""The text tools: exact densities of an enumerable model, and lists against single texts."""

import copy
import dataclasses
import functools
import json
import logging
import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import Generator, Posterior, Prior, TextVAE, per_example
from jvae.backbones.gpt2 import Gpt2Config
from jvae.data.dataset import RowSpec
from jvae.data.tokenizers import train_word_level
from jvae.decode import DecodeConfig
from jvae.errors import ConfigError, DataError, InputError, JvaeError
from jvae.inference import batching, checks
from jvae.inference.settings import DecodeSettings
from jvae.inference.text_vae import LoadedVAE
from jvae.latent.short_run import ChainConfig
from jvae.models import della, lm, optimus, sri
from jvae.nn.lstm import LstmConfig
from jvae.tree import map_named

TOK = train_word_level(["a b c d e f g h"])
LIMIT = 24
rng = np.random.default_rng(0)
TEXTS = [" ".join(rng.choice(list("abcdefgh"), n)) for n in (3, 20, 1, 14, 16, 2, 5, 7, 12, 4, 6)]


def loaded(model, params, sides=("enc", "dec"), score_end=True) -> LoadedVAE:
    limits = dict.fromkeys(sides, LIMIT)
    return LoadedVAE(model, params, TOK, TOK, RowSpec(8, score_end=score_end), limits, 6)


# --------------------------------------------------------------------------------------------------
# A latent of two values: everything can be summed.

ODDS = np.log([0.3, 0.7])
TABLE = np.array(jax.nn.log_softmax(rng.normal(size=(2, TOK.vocab_size))))


def _unused(*_args, **_kwargs):
    raise AssertionError("not called here")


def _nats(params, batch, z_egz):
    table_bv = params["table"][z_egz[:, 0, 0].astype(int)]
    nats_bt = jnp.take_along_axis(table_bv, batch.dec.token_bt, axis=1)
    return jnp.where(batch.scored_bt, nats_bt, 0.0)


def two_values(score_end=True) -> LoadedVAE:
    """z is 0 or 1, tokens are independent given z, and the posterior is exact."""

    def log_prior(params, z_egz, cond=None):
        return params["odds"][z_egz[:, 0, 0].astype(int)]

    def encode(params, batch, drop=None, *, cond=None, key_e=None):
        def joint(value):
            z_egz = jnp.full((batch.id_e.shape[0], 1, 1), float(value))
            return per_example(_nats(params, batch, z_egz), batch) + log_prior(params, z_egz)

        return jax.nn.log_softmax(jnp.stack([joint(0), joint(1)], axis=1))

    def sample(params, post, key_ke):
        draw = jax.vmap(jax.random.categorical)
        z_ke = jax.vmap(lambda key_e: draw(key_e, post))(key_ke)
        return z_ke[:, :, None, None].astype(jnp.float32)

    def log_q(params, post, z_egz):
        place_e1 = z_egz[:, 0, :].astype(int)
        return jnp.take_along_axis(post, place_e1, axis=1)[:, 0]

    posterior = Posterior(encode, sample, log_q, lambda params, q: jnp.exp(q[:, 1:, None]))
    gen = Generator(
        condition=lambda params, batch, drop=None: None,
        prepare=lambda params, batch, drop=None, *, cond=None: batch,
        log_lik=_nats,
        aux=_unused,
        start=_unused,
        step=_unused,
        expand=_unused,
        reorder=_unused,
    )
    prior = Prior(_unused, log_prior)
    model = TextVAE(_unused, None, prior, gen, posterior, (1, 1))
    params = {"odds": jnp.asarray(ODDS), "table": jnp.asarray(TABLE)}
    return loaded(model, params, ("dec",), score_end)


@pytest.mark.fast_on("True")
@pytest.mark.parametrize("score_end", [True, False])
def test_an_enumerable_model_gives_its_exact_likelihood(score_end):
    """The likelihood of whole sentences, also if ends were not scored in training."""
    vae = two_values(score_end)
    ids = [ids[1:] for ids in TOK.encode_batch(TEXTS)]
    joint = np.array([[ODDS[z] + TABLE[z][i].sum() for z in (0, 1)] for i in ids])
    exact = -np.logaddexp(*joint.T)
    # With the exact posterior every draw has the weight p(x), so any K gives it.
    np.testing.assert_allclose(vae.nll(TEXTS, k=3, seed=1), exact, atol=1e-4)
    share = np.exp(joint[:, 1] + exact)
    np.testing.assert_allclose(vae.encode(TEXTS)[:, 0, 0], share, atol=1e-5)
    for token_scores, i in zip(
        vae.token_log_probs(TEXTS, z_egz=np.ones((11, 1, 1))), ids, strict=True
    ):
        assert token_scores.tokens == [TOK.backend.id_to_token(int(t)) for t in i]
        np.testing.assert_allclose(token_scores.nats, TABLE[1][i], atol=1e-6)


# --------------------------------------------------------------------------------------------------
# Real systems, small.

STACK = Gpt2Config(
    layers=2, width=16, heads=2, mlp=32, vocab=TOK.vocab_size, positions=LIMIT + 1, vocab_multiple=8
)
RECURRENT = LstmConfig(6, 10, TOK.vocab_size, vocab_multiple=8)
CHAIN = ChainConfig(2, "constant", step_size=0.2, temperature=1.0, chains=4, chunk=4)
SYSTEMS = {
    "optimus": (lambda: optimus.build(optimus.OptimusConfig(STACK, STACK, latent=5)), True),
    "della": (lambda: della.build(della.DellaConfig(STACK, latent=5, rank=2)), True),
    "lm": (lambda: lm.build(lm.LmConfig(STACK)), False),
    "sri": (lambda: sri.build(sri.SriConfig(RECURRENT, latent=5, chain=CHAIN)), False),
}


@functools.cache
def system(name: str) -> LoadedVAE:
    build, encodes = SYSTEMS[name]
    model = build()
    random = np.random.default_rng(2)

    def leaf(path, like):  # far from initial values, near which most of a model is silent
        return jnp.asarray(
            0.3 * random.normal(size=like.shape) + path.endswith("scale"), like.dtype
        )

    params = map_named(leaf, jax.eval_shape(model.init, jax.random.key(0)))
    return loaded(model, params, ("enc", "dec") if encodes else ("dec",))


def test_long_texts_are_counted_and_cut(caplog):
    vae = system("optimus")
    word = TEXTS[1].split()[0]
    texts = [word, " ".join([word] * 100)]
    assert vae.count(texts).tolist() == [3, 102]
    with pytest.raises(DataError, match="sentence 2"):
        vae.encode(texts)
    z_egz = vae.encode(texts, truncate=True)
    assert "1 of 2 texts were truncated" in caplog.text
    longest = " ".join([word] * (min(vae.limits.values()) - 2))
    np.testing.assert_allclose(z_egz, vae.encode([word, longest]), atol=1e-5)
    assert len(vae.reconstruct(texts, truncate=True, max_length=2)) == 2


@pytest.mark.fast_on("lm")
@pytest.mark.parametrize(
    "name", [pytest.param(s, marks=[pytest.mark.slow] * (s in ("sri", "della"))) for s in SYSTEMS]
)
def test_a_list_gives_what_its_texts_give_alone(name):
    vae = system(name)
    z_egz = vae.encode(TEXTS)
    alone = np.concatenate([vae.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(z_egz, alone, atol=1e-5)
    assert z_egz.size == 0 or len(np.unique(z_egz, axis=0)) == 11
    scored = vae.token_log_probs(TEXTS)
    for i in (1, 4):
        np.testing.assert_allclose(
            scored[i].nats, vae.token_log_probs(TEXTS[i : i + 1])[0].nats, atol=1e-4
        )
    assert [len(token_scores.tokens) for token_scores in scored] == [
        len(text.split()) + 1 for text in TEXTS
    ]
    nll = vae.nll(TEXTS, k=2, chunk=2)
    np.testing.assert_allclose(nll[4:6], np.append(*(vae.nll([t], k=2) for t in TEXTS[4:6])), 1e-4)
    if name == "lm":  # nothing to integrate over: the bound is the sum
        np.testing.assert_allclose(
            [-token_scores.nats.sum() for token_scores in scored], nll, rtol=1e-5
        )


@pytest.mark.slow
def test_posteriors_come_as_means_draws_and_statistics():
    vae = system("optimus")
    stats = vae.encode(TEXTS, return_="stats")
    np.testing.assert_allclose(stats.mean, vae.encode(TEXTS), atol=1e-6)
    draws = vae.posterior_samples(TEXTS, 64, seed=1)
    spread = np.abs(draws - stats.mean[:, None]) / stats.std[:, None]
    assert 0.7 < spread.mean() < 0.9  # a standard normal: 0.798
    one = vae.encode(TEXTS, return_="sample", seed=1)
    np.testing.assert_allclose(one, draws[:, 0], atol=1e-5)
    mean, std = stats.mean.astype(np.float64), stats.std.astype(np.float64)
    kl = 0.5 * (mean**2 + std**2 - 2 * np.log(std) - 1).sum((1, 2))
    np.testing.assert_allclose(stats.kl, kl, rtol=1e-4)
    assert vae.encode([], return_="stats").std.shape == (0, 1, 5)
    for name, return_, message in (
        ("optimus", "means", "return_ is 'means'; it must be one of mean, sample, stats"),
        ("lm", "stats", "not a diagonal Gaussian"),
    ):
        with pytest.raises(InputError, match=message):
            system(name).encode(["a"], return_=return_)
    with pytest.raises(InputError, match="reads one chain"):
        system("sri").encode(["a"], return_="sample", chains=2)


def test_batches_of_other_sizes_change_nothing(capfd):
    vae = system("optimus")
    np.testing.assert_allclose(vae.encode(TEXTS, batch_size=2), vae.encode(TEXTS), atol=1e-5)
    assert max(len(batch.id_e) for _, batch in vae.batches(TEXTS, most=2)) == 2
    assert not capfd.readouterr().err
    vae.encode(TEXTS, progress=True)
    assert "encoding: done in" in capfd.readouterr().err
    with pytest.raises(InputError, match="batch_size is 0; expected a whole number of at least 1"):
        vae.encode(TEXTS, batch_size=0)


def test_a_model_prints_as_one_line():
    text = repr(dataclasses.replace(system("optimus"), name="mine"))
    assert text.startswith("<LoadedVAE mine: latent 1 x 5, ") and len(text) < 120
    assert "texts of up to 24 tokens" in text


@pytest.mark.slow
def test_every_layer_of_a_layer_wise_latent_is_mixed():
    vae = system("della")
    z_egz = vae.encode(["a b", "c d e"])
    assert z_egz.shape == (2, 2, 5)
    middle_gz = vae.encode(["a b", "c d e"]).mean(axis=0)
    assert (np.abs(z_egz[0] - z_egz[1]).max(axis=1) > 1e-3).all()
    greedy = vae.interpolate("a b", "c d e", 3)
    assert greedy == vae.decode(np.stack([z_egz[0], middle_gz, z_egz[1]]))


@pytest.mark.slow
def test_chains_are_averaged_and_seeded():
    vae = system("sri")
    z_egz = vae.encode(TEXTS[:3], seed=4)
    # The fitted posterior averages four chains; so do four chains.
    np.testing.assert_allclose(z_egz, vae.encode(TEXTS[:3], seed=4, chains=4), atol=1e-5)
    assert np.abs(z_egz - vae.encode(TEXTS[:3], seed=5)).max() > 1e-2
    one, many = (
        np.std([vae.encode(TEXTS[:3], seed=s, chains=r) for s in range(6)], axis=0).mean()
        for r in (1, 4)
    )
    assert many < 0.8 * one
    for name, chains, why in (("optimus", 2, "no chains"), ("sri", 0, "at least 1")):
        with pytest.raises(ValueError, match=why):
            system(name).encode(["a"], chains=chains)


@pytest.mark.slow
def test_samples_depend_on_their_number_in_no_way():
    vae = system("optimus")
    many = vae.sample_prior(20, 3)
    np.testing.assert_allclose(many[:4], vae.sample_prior(4, 3), atol=1e-6)
    assert vae.sample_prior(0).shape == (0, 1, 5) and vae.sample(0) == []
    assert vae.decode(many)[:4] == vae.decode(many[:4])
    assert vae.decode(many, 1, method="sample")[:4] == vae.decode(many[:4], 1, method="sample")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["greedy", "sample"])
def test_long_sentences_are_decoded_apart(method, monkeypatch):
    vae = dataclasses.replace(system("optimus"), max_length=12, decode_batch=8)
    z_egz = 2 * vae.sample_prior(24, 3)
    plain = vae.decode(z_egz, 1, method=method)
    monkeypatch.setattr(batching, "SIZES", (8, 16, 512))
    monkeypatch.setattr(batching, "SHORTEST", 3)
    assert batching.lengths(DecodeConfig(max_length=12), 24) == [3, 6, 12]
    assert vae.decode(z_egz, 1, method=method) == plain
    assert {len(text.split()) > 3 for text in plain} == {True, False}
    for config, total in ((DecodeConfig(max_length=12), 16), (DecodeConfig("beam"), 24)):
        assert batching.lengths(config, total) == [config.max_length]
    assert batching.lengths(DecodeConfig(max_length=75, min_length=20), 24) == [20, 40, 75]


# --------------------------------------------------------------------------------------------------
# Editing, on a latent that can be read off.


class Spelt(LoadedVAE):
    """The latent counts letters; a latent is decoded to its counts."""

    def encode(self, texts, sources=None, **_):
        return np.array([[[t.count("a"), t.count("b")]] for t in texts], np.float32)

    def decode(self, z_egz, seed=None, sources=None, **settings):
        return [" ".join(f"{v:.1f}" for v in z.ravel()) + str(settings or "") for z in z_egz]


def test_edits():
    vae = Spelt(two_values().model, {}, TOK, TOK, RowSpec(8), {"dec": LIMIT}, 6)
    assert vae.interpolate("a", "aab", 3) == ["1.0 0.0", "1.5 0.5", "2.0 1.0"]
    assert vae.interpolate("a", "b", 3, how="slerp")[1] == "0.7 0.7"
    assert vae.interpolate("a", "b", 2, method="beam")[0] == "1.0 0.0{'method': 'beam'}"
    assert vae.analogy("a", "abb", "aaa") == "3.0 2.0"
    assert vae.traverse("ab", [1], (-1, 0.5)) == [["1.0 0.0", "1.0 1.5"]]
    assert [len(texts) for texts in vae.traverse("ab")] == [7, 7]
    actual = vae.neighbors("ab", ["a", "aabb", "abb"], 2)
    assert [(n.text, n.place) for n in actual] == [("aabb", 1), ("abb", 2)]
    assert actual[0].distance == pytest.approx(0)
    near = vae.neighbors("ab", ["a", "aabb", "abb"], 1, metric="euclidean")
    assert near[0].distance == 1


# --------------------------------------------------------------------------------------------------


LISTS = {
    "encode": lambda vae, texts: vae.encode(texts),
    "reconstruct": lambda vae, texts: vae.reconstruct(texts),
    "nll": lambda vae, texts: vae.nll(texts, k=1),
    "token_log_probs": lambda vae, texts: vae.token_log_probs(texts),
    "neighbors": lambda vae, texts: vae.neighbors("a", texts),
}
ONES = {
    "interpolate": lambda vae, text: vae.interpolate("a", text),
    "analogy": lambda vae, text: vae.analogy("a", text, "b"),
    "traverse": lambda vae, text: vae.traverse(text),
    "neighbors": lambda vae, text: vae.neighbors(text, ["a"]),
}
BAD_LISTS = (
    ("a b", TypeError, "expected a list of sentences, not one string"),
    (b"a b", TypeError, "expected a list of sentences, not one string"),
    (None, TypeError, "expected a list of sentences, not NoneType"),
    (7, TypeError, "expected a list of sentences, not int"),
    ({"a": "b"}, TypeError, "expected a list of sentences, not dict"),
    ({"a", "b"}, TypeError, "expected a list of sentences, not set"),
)
BAD_TEXTS = (
    (3, TypeError, "is of type int; expected text"),
    (None, TypeError, "is of type NoneType; expected text"),
    (b"a", TypeError, "is of type bytes; expected text"),
    (["a"], TypeError, "is of type list; expected text"),
    ("", DataError, "is empty; there is nothing to encode"),
    (" \t\u3000\n", DataError, "is empty; there is nothing to encode"),
    ("a \ud83d b", DataError, "holds half of a surrogate pair"),
    ("a\0b", DataError, "holds a NUL character at column 2"),
    ("a " * 5000, DataError, ": 5002 tokens .* more than the 24 that the model has"),
    ("a </s> b", DataError, ": spells the special token '</s>'"),
)


@pytest.mark.parametrize("call", LISTS)
def test_a_list_that_is_none_or_holds_what_is_no_text(call):
    vae = system("optimus")
    for bad, kind, message in BAD_LISTS:
        with pytest.raises(kind, match=message):
            LISTS[call](vae, bad)
    for bad, kind, message in BAD_TEXTS:
        with pytest.raises(kind, match=f"^sentence 2 ?{message}"):
            LISTS[call](vae, ["a b", bad])


@pytest.mark.parametrize("call", ONES)
def test_an_edit_of_what_is_no_text(call):
    for bad, kind, message in BAD_TEXTS:
        with pytest.raises(kind, match=f"^sentence [12] ?{message}"):
            ONES[call](system("optimus"), bad)
    with pytest.raises(ValueError, match="this model has no latent"):
        ONES[call](system("lm"), "a")


def test_texts_of_every_shape():
    vae = system("optimus")
    plain = vae.encode(["a b", "c"])
    for same in (("a b", "c"), np.array(["a b", "c"]), (t for t in ("a b", "c"))):
        np.testing.assert_array_equal(vae.encode(same), plain)
    # Blanks around a text are not part of it, and a line break is one of the blanks inside.
    np.testing.assert_array_equal(vae.encode([" a\nb\r\n", "\tc "]), plain)
    odd = ["🙂", "a 👩‍👩‍👧 b", "\u202eabc", "e\u0301", "\x1b[31m", "日本語のテキスト"]
    assert np.isfinite(vae.encode(odd)).all() and np.isfinite(vae.nll(odd, k=1)).all()
    assert len(vae.reconstruct(odd)) == len(vae.token_log_probs(odd)) == len(odd)
    assert vae.encode([]).shape == (0, 1, 5) and vae.nll([]).shape == (0,)
    assert vae.reconstruct([]) == vae.token_log_probs([]) == vae.neighbors("a", []) == []


BAD_LATENTS = (
    (np.zeros((2, 5)), r"shape \(2, 5\); expected \(n, 1, 5\)"),
    (np.zeros((2, 1, 4)), r"shape \(2, 1, 4\); expected \(n, 1, 5\)"),
    ("a sentence", "latents are not an array of numbers"),
    ([[[0.0, 1.0]], [[2.0]]], "latents are not an array of numbers"),
    (None, "latents"),
    (np.array([[[0.0] * 5], [[0.0, np.nan, 0, 0, 0]]]), "latent 2 holds a value that is not fin"),
    (np.full((1, 1, 5), np.inf), "latent 1 holds a value that is not finite"),
)


def test_latents_and_numbers_that_cannot_be():
    vae = system("optimus")
    for bad, message in BAD_LATENTS:
        with pytest.raises(ValueError, match=message):
            vae.decode(bad)
    for call, message in (
        (lambda: vae.sample(-1), "n is -1; expected a whole number of at least 0"),
        (lambda: vae.sample(2.5), "n is 2.5; expected a whole number"),
        (lambda: vae.sample_prior("3"), "n is '3'; expected a whole number"),
        (lambda: vae.nll(["a"], k=0), "k is 0; expected a whole number of at least 1"),
        (lambda: vae.nll(["a"], k=2, chunk=0), "chunk is 0; expected"),
        (lambda: vae.interpolate("a", "b", 1), "steps is 1; expected a whole number of at least 2"),
        (lambda: vae.interpolate("a", "b", 2.5), "steps is 2.5; expected a whole number"),
        (lambda: vae.interpolate("a", "b", how="up"), "how is 'up'; expected one of linear, slerp"),
        (lambda: vae.traverse("a", [5]), "dimension 5: the latent has dimensions 0 to 4"),
        (lambda: vae.traverse("a", [-1]), "dimension is -1; expected a whole number"),
        (lambda: vae.traverse("a", [0.5]), "dimension is 0.5; expected a whole number"),
        (lambda: vae.neighbors("a", ["b"], 0), "0 neighbors; expected at least 1"),
        (lambda: vae.neighbors("a", ["b"], metric="dot"), "metric is 'dot'; expected one of"),
        (lambda: vae.encode(["a"], ["b"]), "reads no source text; leave `sources` out"),
        (
            lambda: vae.token_log_probs(["a"], z_egz=np.zeros((2, 1, 5))),
            r"shape \(2, 1, 5\); expected \(1, 1, 5\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    for name, near in (("temprature", "temperature"), ("temp", "temperature"), ("topk", "top_k")):
        with pytest.raises(
            ConfigError, match=f"'{name}' is not a decoding .* did you mean '{near}'"
        ):
            vae.sample(1, **{name: 2})
    with pytest.raises(ConfigError, match="decode.method is 'best'; it must be one of greedy"):
        vae.decode(np.zeros((1, 1, 5)), method="best")


def test_settings_of_other_methods_in_a_config_are_left_out():
    beam = dict(method="beam", beam_width=10, length_penalty=1.0, min_length=3, temperature=0.7)
    section = beam | dict(max_length=50, batch=4)
    read = dict(method="beam", beam_width=10, length_penalty=1.0, min_length=3)
    assert checks.configured(section) == read
    sampled = dict(method="sample", min_length=3, temperature=0.7)
    assert checks.configured(section, method="sample") == sampled
    assert checks.settings(sampled) == sampled


def test_a_decoding_setting_selects_its_method():
    for values, default, method in (
        ({}, "greedy", "greedy"),
        ({}, "sample", "sample"),
        (dict(temperature=0.7), "greedy", "sample"),
        (dict(temperature=1.0), "greedy", "greedy"),  # the value that changes nothing
        (dict(beam_width=8), "sample", "beam"),
        (dict(method="sample", top_p=0.9), "greedy", "sample"),
    ):
        assert checks.settings(values, default) == values | {"method": method}
    for values, message in (
        (dict(method="greedy", temperature=0.7), "temperature has no effect with method='greedy'"),
        (dict(temperature=0.7, beam_width=8), "beam_width has no effect with method='sample'"),
    ):
        with pytest.raises(ConfigError, match=message):
            checks.settings(values)
    vae = system("optimus")
    z_egz = vae.sample_prior(8, 3)
    drawn = vae.decode(z_egz, 1, temperature=1.9)
    assert drawn == vae.decode(z_egz, 1, method="sample", temperature=1.9) != vae.decode(z_egz)


def test_bounds():
    """What would take all memory, or be another number than it says, is refused at once."""
    vae, z_egz = system("optimus"), np.zeros((1, 1, 5))
    for call, message in (
        (lambda: vae.sample(10**12), "n is 1000000000000; expected a whole number of at most"),
        (lambda: vae.sample(1, 2**70), "seed is 11.*; expected a whole number of at most 4,294,96"),
        (lambda: vae.sample(1, -1), "seed is -1; expected a whole number of at least 0"),
        (lambda: vae.nll(["a"], seed=0.5), "seed is 0.5; expected a whole number"),
        (lambda: vae.nll(["a"], k=10**9), "k is 1000000000; expected a whole number of at most"),
        (lambda: dataclasses.replace(vae, seed=2**70), "seed is 11"),
        (lambda: vae.interpolate("a", "b", 10**9), "steps is 1000000000; expected"),
        (lambda: vae.decode(z_egz + 1j), r"complex numbers; expected real ones, \(n, 1, 5\)"),
        (lambda: vae.decode(z_egz + 1e300), "latent 1 holds a value that is not finite"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    for settings, message in (
        (dict(max_length=10**6), "decode.max_length is 1000000; it may be at most 65,536"),
        (dict(max_length=LIMIT), "decode.max_length is 24; this model has positions for 23"),
        (dict(method="beam", beam_width=1000), "decode.beam_width is 1000; it may be at most 256"),
    ):
        with pytest.raises(ConfigError, match=message):
            vae.decode(z_egz, **settings)


def test_a_pickle_names_the_way():
    for copied in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(JvaeError, match=r"cannot be pickled or copied: .* jvae.load there"):
            copied(system("optimus"))


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_child_is_told():
    """It would wait for threads that only the parent has."""
    vae = system("optimus")
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        answers = []
        for call in (
            lambda: vae.encode(["a"]),
            lambda: vae.decode(np.zeros((1, 1, 5))),
            lambda: vae.sample(1),
            lambda: vae.nll(["a"]),
        ):
            try:
                call()
            except JvaeError as error:
                answers.append(str(error))
        os.write(write, json.dumps(answers).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        answers = json.loads(file.read())
    os.waitpid(child, 0)
    assert len(answers) == 4
    assert all(f"loaded in process {os.getpid()}" in answer for answer in answers)


def test_unknown_words_are_told(caplog):
    with caplog.at_level(logging.WARNING):
        assert np.isfinite(two_values().encode(["a 🙂 b", "日本"])).all()
    assert "50.0% of the tokens are unknown" in caplog.text


def test_few_shapes_whatever_the_texts():
    words = rng.integers(1, 22, 3_000)
    texts = [" ".join("abcdefgh"[i % 8] for i in range(n)) for n in words]
    actual = batching.tokenise(texts, None, {"dec": TOK}, {"dec": LIMIT})
    shapes, seen = set(), []
    for place_e, batch in batching.batches(actual):
        shapes.add(batch.dec.token_bt.shape)
        seen += place_e.tolist()
        first = TOK.encode_batch([texts[place_e[0]]])[0]
        np.testing.assert_array_equal(batch.dec.token_bt[0][: len(first)], first)
        assert batch.valid_e.sum() == len(place_e)
    assert sorted(seen) == list(range(3_000))
    assert {t for _, t in shapes} == {16, 24} and len(shapes) <= 6


@pytest.mark.parametrize("most", [1, 3, 8, 100, 512])
def test_batches_are_not_much_larger_than_needed(most):
    sizes = {n: batching.batch_size(n, most) for n in range(1, 2_000)}
    assert set(sizes.values()) <= {min(8, most), min(64, most), most}
    assert all(size <= max(8, 4 * n) for n, size in sizes.items())


def test_decode_settings_are_the_fields_of_the_config():
    fields = {field.name: field.type for field in dataclasses.fields(DecodeConfig)}
    assert DecodeSettings.__annotations__ == fields
