"""What only DELLA has: its source side, poolings, layer ranges and auxiliary head."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import Batch, Prompt, example_keys, per_example
from jvae.backbones.gpt2 import Gpt2Config
from jvae.data.rows import Encoded, pack_rows
from jvae.latent import layerwise
from jvae.latent.elbo import measure
from jvae.latent.iw_bound import score_batch
from jvae.models import della, layer_vectors, lm
from jvae.tree import map_named, sizes

# These programs run once or twice: what they cost is their compilation.
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

VOCAB, END, PAD = 29, 27, 28
DECODER = Gpt2Config(2, 16, 2, 32, VOCAB, 16, dropout=0.0, vocab_multiple=8)
CONFIG = della.DellaConfig(DECODER, latent=3, rank=2)
CONDITIONAL = dataclasses.replace(
    CONFIG, conditional=True, use_bow=True, cvae_posterior="xc", begin_layer=1
)


def _pairs() -> tuple[Encoded, Encoded]:
    """Sources, and sources with their targets after them."""
    rng = np.random.default_rng(0)
    source = [np.append(rng.integers(0, END, n), END) for n in (2, 1, 3, 2)]
    target = [np.append(rng.integers(0, END, n), END) for n in (3, 4, 1, 2)]
    both = [np.concatenate(pair) for pair in zip(source, target, strict=True)]
    return Encoded.of(source), Encoded.of(both)


def _pack(ids_bs: list[list[int]], row: int, source_row: int) -> Batch:
    source, both = _pairs()
    ids = np.array(ids_bs)
    rows = dict(enc=row, dec=row, cond=source_row)
    batch = pack_rows(ids, dict(enc=both, dec=both, cond=source), rows, dict.fromkeys(rows, PAD))
    # The data path scores all but the first token; a source is not scored at all.
    length_bs = np.where(ids < 0, 0, source.lengths[np.maximum(ids, 0)])
    segment_bt = np.asarray(batch.dec.segment_bt)
    length_bt = np.take_along_axis(length_bs, np.maximum(segment_bt - 1, 0), axis=1)
    scored_bt = (segment_bt > 0) & (np.asarray(batch.dec.position_bt) >= length_bt)
    return jax.tree.map(jnp.asarray, batch._replace(scored_bt=scored_bt))


PACKED = _pack([[3, 0, -1], [1, -1, 2]], row=16, source_row=12)
MIXED = _pack([[2, -1, 1], [-1, 0, 3]], row=16, source_row=12)
SINGLE = _pack([[0], [1], [2], [3]], row=7, source_row=5)


class Built:
    """A model and parameters as after training: none at 0, none too small to matter."""

    def __init__(self, config: della.DellaConfig):
        self.config, self.model = config, della.build(config)
        draw = np.random.default_rng(0).normal
        shapes = jax.eval_shape(self.model.init, jax.random.key(0))
        self.params = map_named(
            lambda name, a: jnp.asarray(
                name.endswith("scale") + 0.3 * draw(size=a.shape), jnp.float32
            ),
            shapes,
        )


@pytest.fixture(scope="module")
def built():
    return Built(CONFIG)


@pytest.fixture(scope="module")
def conditional():
    return Built(CONDITIONAL)


def _by_id(batch: Batch, value_e) -> np.ndarray:
    id_e = np.asarray(batch.id_e)
    return np.asarray(value_e)[np.argsort(id_e)][np.sum(id_e < 0) :]


@pytest.fixture(scope="module")
def terms(conditional):
    """Terms of the pairs one to a row."""
    run = lambda params: measure(conditional.model, params, SINGLE, jax.random.key(0))  # noqa: E731
    return compiled(run)(conditional.params)


@pytest.mark.slow
def test_pairs_say_the_same_in_every_packing(conditional, terms):
    @compiled
    def run(params, batch):
        def loss(params):
            terms = measure(conditional.model, params, batch, jax.random.key(0))
            total_e = terms.nll_e + terms.aux["bow"] + jnp.sum(terms.kl_egz, axis=(1, 2))
            return jnp.sum(jnp.where(terms.valid_e, total_e, 0.0)), terms

        return jax.grad(loss, has_aux=True)(params)

    def close(a, b):
        scale = np.max(np.abs(b), initial=1.0)
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6 * scale)

    grads, packed = run(conditional.params, PACKED)
    mixed_grads, mixed = run(conditional.params, MIXED)
    for batch, got in ((PACKED, packed), (MIXED, mixed)):
        for name in ("nll_e", "kl_egz", "scored_e"):
            close(_by_id(batch, getattr(got, name)), _by_id(SINGLE, getattr(terms, name)))
        close(_by_id(batch, got.aux["bow"]), _by_id(SINGLE, terms.aux["bow"]))
    np.testing.assert_array_equal(_by_id(SINGLE, terms.scored_e), [4, 5, 2, 3])  # targets, ends
    jax.tree.map(close, grads, mixed_grads)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((packed, grads)))


def test_source_reaches_prior_and_posterior(conditional):
    model, params = conditional.model, conditional.params
    other = SINGLE.cond._replace(token_bt=(SINGLE.cond.token_bt + 1) % END)

    @compiled
    def run(params, batch):
        cond = model.gen.condition(params, batch)
        post = model.post.encode(params, batch, cond=cond)
        key_e = example_keys(jax.random.key(0), batch.id_e)
        prior_egz = model.prior.sample(params, key_e, cond)
        return (
            model.post.mean(params, post),
            prior_egz,
            model.prior.log_prob(params, prior_egz, cond),
        )

    # Whole ones would push some means to the clip, where nothing differs.
    halved = jax.tree.map(lambda leaf: leaf / 2, conditional.params)
    here, there = (run(halved, SINGLE._replace(cond=c)) for c in (SINGLE.cond, other))
    for a, b in zip(here, there, strict=True):
        assert np.all(np.asarray(a) != np.asarray(b))
    with pytest.raises(ValueError, match="`cond` side"):
        model.gen.condition(params, SINGLE._replace(cond=None))


def test_decoding_from_ragged_sources_equals_teacher_forcing(conditional):
    model, params = conditional.model, conditional.params
    source, _ = _pairs()
    prompt = Prompt(SINGLE.cond.token_bt, jnp.asarray(source.lengths, jnp.int32))
    steps = int(source.lengths.max())

    @compiled
    def both(params, batch):
        z_egz = jax.random.normal(jax.random.key(1), (4, CONDITIONAL.groups, CONDITIONAL.latent))
        ctx = model.gen.prepare(params, batch)
        forced_bt = model.gen.log_lik(params, ctx, z_egz)
        logits_ev, state = model.gen.start(params, z_egz, prompt, 5 + steps)
        nats = []
        for i in range(2):  # every target has at least two tokens, its end included
            token_e = batch.dec.token_bt[jnp.arange(4), prompt.length_e + i]
            nats.append(jax.nn.log_softmax(logits_ev)[jnp.arange(4), token_e])
            logits_ev, state = model.gen.step(params, state, token_e)
        at = prompt.length_e[:, None] + jnp.arange(2)[None]
        return jnp.stack(nats, 1), jnp.take_along_axis(forced_bt, at, axis=1), forced_bt

    stepwise, forced, forced_bt = both(params, SINGLE)
    np.testing.assert_allclose(stepwise, forced, rtol=1e-4, atol=1e-5)
    assert np.all(np.asarray(forced_bt)[~np.asarray(SINGLE.scored_bt)] == 0)


def test_bag_of_words_against_a_sum_by_hand(conditional, terms):
    params, config = conditional.params, conditional.config
    z_egz = _latents_of_measure(conditional)
    bow, decoder = params["decoder"]["bow"], params["decoder"]
    hidden = np.asarray(z_egz)[:, -1] @ np.asarray(bow["kernel"]) + np.asarray(bow["bias"])
    scores = hidden @ np.asarray(decoder["head"]["table"])[: config.decoder.vocab].T
    log_p_ev = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    scored, tokens = np.asarray(SINGLE.scored_bt), np.asarray(SINGLE.dec.token_bt)
    want = [-sum(log_p_ev[e, tokens[e, scored[e]]]) for e in range(4)]
    np.testing.assert_allclose(terms.aux["bow"], want, rtol=1e-4)


def _latents_of_measure(built: Built):
    """The latents that `measure` draws for SINGLE with key 0."""
    _, z_key = jax.random.split(jax.random.key(0))
    keys = example_keys(z_key, SINGLE.id_e, jnp.arange(1))

    @compiled
    def run(params):
        cond = built.model.gen.condition(params, SINGLE)
        post = built.model.post.encode(params, SINGLE, cond=cond)
        return built.model.post.sample(params, post, keys)[0]

    return run(built.params)


@pytest.mark.slow
def test_any_number_of_draws_costs_one_encoder_pass(built, monkeypatch):
    passes = []
    whole = layer_vectors.states

    def counted(*args, **options):
        jax.debug.callback(lambda: passes.append(1))
        return whole(*args, **options)

    monkeypatch.setattr(layer_vectors, "states", counted)
    batch = SINGLE._replace(cond=None)
    scores = score_batch(della.build(CONFIG), k=6, chunk=2)(built.params, batch, jax.random.key(0))
    jax.block_until_ready(scores)
    jax.effects_barrier()
    assert len(passes) == 1
    assert np.all(np.isfinite(np.asarray(scores.nll_e)))


@pytest.mark.parametrize("pool", della.POOLS)
def test_padding_matters_to_the_released_pooling_alone(built, pool):
    config = dataclasses.replace(CONFIG, pool=pool)
    run = compiled(lambda side: della.pooled(config, built.params, side, 1))
    side = SINGLE.dec
    wider = jax.tree.map(lambda a: jnp.pad(a, ((0, 0), (0, 3))), side)
    same = np.allclose(run(side), run(wider), rtol=1e-4, atol=1e-5)
    assert same == (pool != "attn_unmasked")
    if pool == "attn_unmasked":
        with pytest.raises(ValueError, match="one sentence per row"):
            della.pooled(config, built.params, side, 3)


def test_first_prior_is_standard_normal_at_initialisation():
    model, chain = della.build(CONFIG), della.chain(CONFIG)
    z_egz = jax.random.normal(jax.random.key(0), (4, CONFIG.groups, CONFIG.latent))

    @compiled
    def prior(key):
        return layerwise.walk(chain, model.init(key), layerwise.the_given, z_egz).prior

    mean_egz, log_var_egz = prior(jax.random.key(0))
    np.testing.assert_array_equal(mean_egz[:, 0], 0.0)
    np.testing.assert_array_equal(log_var_egz[:, 0], 0.0)
    assert np.any(np.asarray(mean_egz[:, 1]) != 0)


@pytest.mark.parametrize("begin, ltp", [(0, "product_then_sum"), (1, "sum_then_product")])
def test_fusion_by_the_identity_leaves_gpt2(begin, ltp):
    """Values times one under a tied head: the language model of the same weights."""
    config = dataclasses.replace(
        CONFIG, rank=1, begin_layer=begin, product_order=ltp, tie_lm_head=True, pool="first_token"
    )
    built = Built(config)
    fusion = jax.tree.map(jnp.zeros_like, built.params["decoder"]["fusion"])
    eye = jnp.eye(16).reshape(1, 16, 1, 2, 8)
    fusion["value"]["kernel"] = jnp.repeat(eye, config.groups, axis=0)
    fusion["latent"]["bias"] = jnp.ones_like(fusion["latent"]["bias"])
    params = {**built.params, "decoder": {**built.params["decoder"], "fusion": fusion}}
    baseline = lm.build(lm.LmConfig(DECODER))
    z_egz = jax.random.normal(jax.random.key(0), (6, *built.model.latent_shape))

    def nats(model, params):
        ctx = model.gen.prepare(params, PACKED)
        return per_example(model.gen.log_lik(params, ctx, z_egz), PACKED)

    run = compiled(lambda p: (nats(built.model, p), nats(baseline, p)))
    np.testing.assert_allclose(*run(params), rtol=1e-5)
    changed, plain = run({**built.params})
    assert np.all(np.abs(changed - plain)[np.asarray(PACKED.valid_e)] > 1e-3)


@pytest.mark.parametrize("links", della.LAYER_LATENTS)
def test_upper_latents_know_lower_ones_in_a_chain_alone(links):
    config = dataclasses.replace(CONFIG, layer_latents=links)
    built, chain = Built(config), della.chain(config)
    assert built.model.latent_shape == ((1, 3) if links == "shared" else (2, 3))
    assert ("latent" in built.params) == (links == "chain")
    draw = np.random.default_rng(1).normal
    text_egcz, shape = jnp.asarray(draw(size=(2, config.groups, 2, 3))), (2, config.groups, 3)

    def upper(z_egz):
        walked = layerwise.walk(
            chain, built.params, layerwise.the_given, jnp.asarray(z_egz), text_egcz=text_egcz
        )
        return np.concatenate(
            [np.asarray(leaf)[:, -1] for leaf in (*walked.prior, *walked.posterior)]
        )

    same = np.allclose(upper(draw(size=shape)), upper(draw(size=shape)))
    assert same == (links != "chain")


@pytest.mark.parametrize("begin, links", [(0, "shared"), (1, "independent")])
def test_an_offset_of_zero_leaves_gpt2(begin, links):
    config = dataclasses.replace(
        CONFIG, fuse="offset", layer_latents=links, begin_layer=begin, tie_lm_head=True
    )
    built, baseline = Built(config), lm.build(lm.LmConfig(DECODER))
    z_egz = jax.random.normal(jax.random.key(0), (6, *built.model.latent_shape))

    def nats(model, params):
        ctx = model.gen.prepare(params, PACKED)
        return per_example(model.gen.log_lik(params, ctx, z_egz), PACKED)

    run = compiled(lambda p: (nats(built.model, p), nats(baseline, p)))
    nothing = jax.tree.map(jnp.zeros_like, built.params["decoder"]["layer_offset"])
    plain = {**built.params, "decoder": {**built.params["decoder"], "layer_offset": nothing}}
    np.testing.assert_allclose(*run(plain), rtol=1e-5)
    changed, untouched = run(built.params)
    assert np.all(np.abs(changed - untouched)[np.asarray(PACKED.valid_e)] > 1e-3)


@pytest.mark.parametrize(
    "changes, parameters",
    [
        ({}, 193_353_984),  # Hu et al. 2022, A.1
        (dict(conditional=True), 193_943_808),  # the released conditional model
        (dict(conditional=True, cvae_posterior="xc"), 194_533_632),  # their eq. 12
        (dict(tie_lm_head=True), 193_353_984 - 50_259 * 768),
    ],
)
def test_parameters_of_the_published_size(changes, parameters):
    decoder = Gpt2Config(12, 768, 12, 3072, 50_259, 1024, vocab_multiple=1)
    model = della.build(della.DellaConfig(decoder, latent=32, rank=4, **changes))
    assert sum(sizes(jax.eval_shape(model.init, jax.random.key(0))).values()) == parameters


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(begin_layer=2), "begin_layer is 2, end_layer -1"),
        (dict(begin_layer=1, end_layer=0), "begin_layer is 1, end_layer 0"),
        (dict(conditional=True, learn_prior1=False), "would not know the source"),
    ],
)
def test_choices_that_cannot_be_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_limits_name_the_sides_that_are_read():
    assert della.limits(CONFIG) == dict(enc=16, dec=16)
    assert della.limits(CONDITIONAL) == dict(enc=16, dec=16, cond=16)
