"""A conditional model as a tool: ragged sources give their own latents, prompts and texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import DecodeState, Generator, Posterior, Prior, TextVAE
from jvae.data.dataset import RowSpec
from jvae.data.tokenizers import train_word_level
from jvae.errors import DataError
from jvae.inference.text_vae import LoadedVAE
from jvae.latent import gmm

TOK = train_word_level(["a b c d e f g h"])
VOCAB, BUCKETS, LIMIT = TOK.vocab_size, 31, 16
rng = np.random.default_rng(0)
PARAMS = {
    "word": rng.normal(size=(VOCAB, 2)).astype(np.float32),
    "next": rng.normal(size=(BUCKETS, VOCAB)).astype(np.float32),
    "z": rng.normal(size=(2, VOCAB)).astype(np.float32),
}
PARAMS["next"][:, [TOK.pad_id, TOK.start_id, TOK.unk_id]] = -50
SOURCES = ["a", "b c d e f", "g h", "c c c"]


def _sums(params, side, slots):
    """Sum of the word vectors of each example."""
    slot = jnp.arange(1, slots + 1)
    member_bts = (side.segment_bt[:, :, None] == slot[None, None]).astype(jnp.float32)
    x_btd = params["word"][side.token_bt]
    return jnp.einsum("btd,bts->bsd", x_btd, member_bts).reshape(-1, 2)


def _logits(params, state):
    """Depends on each token that was read, at its place, as a cache has to keep them."""
    place_et = jnp.arange(state.cache["token"].shape[1])[None]
    weight_et = (state.cache["token"] + 1) * (7 * place_et + 1)
    sum_e = jnp.sum(jnp.where(place_et < state.position_e[:, None], weight_et, 0), axis=1)
    return params["next"][sum_e % BUCKETS] + state.cache["z"] @ params["z"]


def _start(params, z_egz, prompt, max_len, cond=None):
    grow = max_len - prompt.token_et.shape[1]
    token_et = jnp.pad(prompt.token_et, ((0, 0), (0, grow)))
    state = DecodeState({"token": token_et, "z": z_egz[:, 0] + cond}, prompt.length_e)
    return _logits(params, state), state


def _step(params, state, token_e):
    e = jnp.arange(len(token_e))
    token_et = state.cache["token"].at[e, state.position_e].set(token_e)
    state = DecodeState(state.cache | {"token": token_et}, state.position_e + 1)
    return _logits(params, state), state


def _none(*_args, **_kwargs):
    raise AssertionError("not called here")


def setting(joined=("enc", "dec")):
    gen = Generator(
        condition=lambda params, batch, drop=None: _sums(params, batch.cond, batch.slots),
        prepare=_none,
        log_lik=_none,
        aux=_none,
        start=_start,
        step=_step,
        expand=_none,
        reorder=_none,
    )
    post = Posterior(
        encode=lambda params, batch, drop=None, *, cond=None, key_e=None: (
            _sums(params, batch.enc, batch.slots) - cond
        ),
        sample=_none,
        log_prob=None,
        mean=lambda params, post: post[:, None],
    )
    prior = Prior(
        sample=lambda params, key_e, cond=None: (
            cond + 0.1 * jax.vmap(lambda key: jax.random.normal(key, (2,)))(key_e)
        )[:, None],
        log_prob=_none,
    )
    model = TextVAE(_none, None, prior, gen, post, (1, 2))
    rows = RowSpec(dec_row=32, enc_row=32, cond_row=32, slots=3, batch_rows=2)
    limits = dict.fromkeys(("enc", "dec", "cond"), LIMIT)
    return LoadedVAE(model, PARAMS, TOK, TOK, rows, limits, 6, decode_batch=3, joined=joined)


def _ids(text):
    return TOK.encode_batch([text])[0]


def _vector(text):
    """Word vectors of a text and its end, summed."""
    return PARAMS["word"][_ids(text)[1:]].sum(axis=0)


def _greedy(z, cond, prompt, steps):
    """Reference of decoding, with the whole history at every step."""
    history = list(prompt)
    for _ in range(steps):
        bucket = sum((t + 1) * (7 * p + 1) for p, t in enumerate(history)) % BUCKETS
        logits = PARAMS["next"][bucket] + (z + cond) @ PARAMS["z"]
        history.append(int(np.argmax(logits)))
        if history[-1] == TOK.end_id:
            break
    return TOK.decode([TOK.start_id, *history[len(prompt) :]])


@pytest.mark.parametrize("joined", [("enc", "dec"), ("dec",), ()])
def test_ragged_sources_reach_prompt_condition_and_posterior(joined):
    vae = setting(joined)
    texts = ["h", "e f", "a b c", "d"]
    z_egz = vae.encode(texts, SOURCES)
    start = PARAMS["word"][TOK.start_id]
    for text, source, z_gz in zip(texts, SOURCES, z_egz, strict=True):
        if "enc" in joined:
            want = _vector(text)
        else:
            want = start + _vector(text) - _vector(source) - (0 if joined else start)
        np.testing.assert_allclose(z_gz[0], want, atol=1e-5)
    decoded = vae.decode(z_egz, sources=SOURCES)
    for got, source, z_gz in zip(decoded, SOURCES, z_egz, strict=True):
        prompt = _ids(source)[1:] if joined else [TOK.start_id]
        cond = _vector(source) if joined else start + _vector(source)
        assert got == _greedy(z_gz[0], cond, prompt, 6)
    assert vae.reconstruct(texts, SOURCES) == decoded
    assert len(set(decoded)) > 1


def test_samples_of_a_source_stand_together():
    vae = setting()
    z_egz = vae.sample_prior(2, 5, SOURCES)
    want = np.repeat([_vector(source) for source in SOURCES], 2, axis=0)
    assert z_egz.shape == (8, 1, 2) and 0 < np.abs(z_egz[:, 0] - want).max() < 1
    texts = vae.sample(2, 5, SOURCES, method="greedy")
    assert texts == vae.decode(z_egz, sources=[s for s in SOURCES for _ in range(2)])
    assert vae.sample(2, 5, SOURCES) == vae.sample(2, 5, SOURCES)
    ends = vae.interpolate("a", "h", 3, "b c")
    assert ends == vae.decode(
        np.linspace(*vae.encode(["a", "h"], ["b c"] * 2), 3), sources=["b c"] * 3
    )


def test_a_long_source_leaves_the_positions_there_are():
    vae = setting()
    long = " ".join("abcdefgh"[i % 8] for i in range(LIMIT - 3))
    z_egz = vae.sample_prior(1, 0, ["a", long])
    for z_gz in z_egz:  # whatever z: two positions are left after the source and its end
        (got,) = vae.decode(z_gz[None], sources=[long])
        assert got == _greedy(z_gz[0], _vector(long), _ids(long)[1:], 2)
    with pytest.raises(DataError, match="source 2: 16 tokens .* more than the 15 that the model"):
        vae.sample(1, sources=["a", f"{long} a b"])


def test_a_long_source_limits_its_own_text_only():
    vae = setting()
    long = " ".join("abcdefgh"[i % 8] for i in range(LIMIT - 3))
    z_egz = vae.sample_prior(1, 0, ["a", long])
    alone = [vae.decode(z_egz[i][None], sources=[s])[0] for i, s in enumerate(("a", long))]
    assert vae.decode(z_egz, sources=["a", long]) == alone
    assert vae.decode(z_egz, sources=["a", long], min_length=4)[1].count(" ") == 1
    for seed in range(3):  # the key of a text does not depend on the others either
        sampled = vae.decode(z_egz, seed, sources=["a", long], method="sample")
        assert sampled[:1] == vae.decode(z_egz[:1], seed, sources=["a"], method="sample")


def test_sampled_tokens_share_no_random_bits_with_the_latent():
    """With a mixture of as many components as tokens, since both are drawn from a few logits."""
    size, like = TOK.vocab_size, setting(())
    prior = gmm.build(gmm.GmmOptions(size), (1, 2)).prior
    place = jnp.arange(size, dtype=jnp.float32)
    mixture = dict(
        logit=jnp.zeros(size),
        mean=jnp.broadcast_to(place[:, None, None], (size, 1, 2)),
        log_var=jnp.full((size, 1, 2), -20.0),
    )
    uniform = jax.tree.map(jnp.zeros_like, PARAMS) | {"prior": mixture}
    model = like.model._replace(prior=prior)
    vae = LoadedVAE(model, uniform, TOK, TOK, like.rows, like.limits, 6, decode_batch=64)
    sources = ["a"] * 256
    z_egz = vae.sample_prior(1, 3, sources)
    texts = vae.decode(z_egz, 3, sources, method="sample", max_length=1)
    drawn = [TOK.decode([TOK.start_id, round(float(z))]) for z in z_egz[:, 0, 0]]
    pairs = [(text, word) for text, word in zip(texts, drawn, strict=True) if word]
    assert len(pairs) > 100
    # By chance one in `size` is equal; with a shared key all are.
    assert np.mean([text == word for text, word in pairs]) < 0.3


def test_no_source_gives_no_text():
    assert setting().sample(2, sources=[]) == []


def test_sources_are_asked_for_and_refused():
    vae = setting()
    z_egz = np.zeros((2, 1, 2))
    for call in (lambda: vae.sample(3), lambda: vae.encode(["a"]), lambda: vae.decode(z_egz)):
        with pytest.raises(
            ValueError, match="this model reads a source text: pass one per sentence"
        ):
            call()
    with pytest.raises(ValueError, match="1 sources for 2 sentences; expected one for each"):
        vae.decode(z_egz, sources=["a"])
    with pytest.raises(DataError, match="source 1 is empty; there is nothing"):
        vae.sample(1, sources=[" "])
    plain = LoadedVAE(vae.model, PARAMS, TOK, TOK, vae.rows, {"dec": 16, "enc": 16}, 6)
    with pytest.raises(ValueError, match="this model reads no source text; leave `sources` out"):
        plain.encode(["a"], ["b"])
