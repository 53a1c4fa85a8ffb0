"""Prior samples, decoded ids and likelihoods of DELLA against the original code."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import Prompt, per_example
from jvae.backbones import gpt2
from jvae.decode import DecodeConfig, decode
from jvae.evals.compat import della as compat
from jvae.injections import fusion
from jvae.latent import gaussian, layerwise
from jvae.models import della
from jvae.nn.attention import masked
from jvae.nn.block import Layer
from jvae.nn.norms import LayerNorm

# These programs run once or a few times: what they cost is their compilation.
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def _grouped(x_egz):
    return jnp.moveaxis(x_egz, 1, 0)


def _shifted_networks(case) -> dict[str, np.ndarray]:
    """Parameters as the released prior sampler reads them: its networks count from 0, whatever
    the first layer with a latent is.
    """
    weights = case.weights("param/")
    shifted = dict(weights)
    for kind in ("prior_network", "reccurnt_cell_weight_hh", "reccurnt_cell_weight_ih"):
        for i in range(case.config.groups):
            for part in ("weight", "bias"):
                theirs = f"encoder.{kind}.{i}.{part}"
                shifted[f"encoder.{kind}.{i + case.config.begin_layer}.{part}"] = weights[theirs]
    return shifted


def test_ancestral_sampling_from_the_prior(single):
    case = single
    params = case.read(_shifted_networks(case))

    @compiled
    def sample(params, noise_egz):
        cond = case.model.gen.condition(params, case.batch)
        source_egcz = case.chain.source_of(cond)
        return layerwise.walk(
            case.chain, params, layerwise.reparameterized, noise_egz, source_egcz=source_egcz
        )

    actual = sample(params, case.latents("prior/eps"))
    assert actual.posterior is None
    case.close(_grouped(actual.z_egz), "prior/z", "hidden")
    case.close(_grouped(actual.prior.mean_egz), "prior/mu", "hidden")
    case.close(_grouped(actual.prior.log_var_egz), "prior/logvar", "hidden")


@cache
def _without_bow(config: della.DellaConfig):
    """Model and chain of a config; the bag of words takes no part in what uses them, so two of the
    files share their compiled programs.
    """
    return della.build(config), della.chain(config)


def _shared(case):
    """Config and parameters without a bag of words."""
    config = dataclasses.replace(case.config, use_bow=False)
    decoder = {k: v for k, v in case.params["decoder"].items() if k != "bow"}
    return config, {**case.params, "decoder": decoder}


def _released_start(config: della.DellaConfig):
    """The released generation predicts the first new token from the last place of the padded
    prompt: a padding token at position 1 that sees the prompt and not itself.
    """
    dec = config.decoder
    stack = gpt2.stack(dec)
    how = fusion.Fusion(dec, config.begin_layer, config.groups, config.product_order)
    plain = _without_bow(config)[0].gen.start

    def start(params, z_egz, prompt, max_len, cond=None):
        logits_ev, state = plain(params, z_egz, prompt, max_len, cond)
        p, width = params["decoder"], prompt.token_et.shape[1]
        fuse_l = fusion.inputs(how, p["fusion"], state.cache.reach.layer_le)
        cache = state.cache.kv
        seen_e1m = (jnp.arange(width)[None] < prompt.length_e[:, None])[:, None]
        x = stack.embed(p, prompt.token_et[:, -1:], jnp.ones((len(z_egz), 1), jnp.int32))
        for i in range(dec.layers):
            one_layer, _ = jax.tree.map(lambda a, i=i: a[i], (p["layers"], fuse_l))
            kv = (kv[:, :, :width].swapaxes(1, 2) for kv in cache.layers[i])
            look = lambda q, k, v, kv=tuple(kv): (masked(q, *kv, seen_e1m), None)  # noqa: E731
            x, _ = Layer(gpt2.spec(dec)).apply({"params": one_layer}, x, look)
        x = LayerNorm(dec.norm_eps).apply({"params": p["norm"]}, x)
        padded_e = prompt.length_e < width
        return jnp.where(padded_e[:, None], stack.logits(p, x[:, 0]), logits_ev), state

    return start


@pytest.mark.parametrize("name", ["greedy_ids_rp1.0", "greedy_ids_rp1.2", "greedy_ids_stop"])
def test_greedy_ids(single, name):
    _check_ids(single, name, method="greedy")


def test_beam_ids(single):
    _check_ids(single, "beam3_ids_rp1.2", method="beam", beam_width=3, norm_length="total")


@cache
def _decoding(config: della.DellaConfig, how: DecodeConfig, end: int, pad: int, released: bool):
    gen = _without_bow(config)[0].gen
    if released:
        gen = gen._replace(start=_released_start(config))
    run = partial(decode, gen, cfg=how, key_e=None, end_id=end, pad_id=pad)
    return compiled(lambda *args: run(*args).token_et)


def _check_ids(case, name: str, **settings):
    want, (model_config, params) = case.data[f"gen/{name}"], _shared(case)
    end = int(case.data["gen/stop_id"]) if name.endswith("stop") else case.meta["eos"]
    z_egz = case.latents("prior/z")
    prompt = Prompt(jnp.full((4, 1), case.meta["bos"]), jnp.ones(4, jnp.int32))
    if case.config.conditional:
        length_e = case.data["in/condition_mask"].sum(axis=1).astype(np.int32)
        prompt = Prompt(jnp.asarray(case.data["in/condition"]), jnp.asarray(length_e))
    width = prompt.token_et.shape[1]
    config = DecodeConfig(
        min_length=case.meta["gen_min_length"] - width,
        max_length=case.meta["gen_max_length"] - width,
        repetition_penalty=1.2 if name.endswith("rp1.2") else 1.0,
        **settings,
    )

    def check(released, rows):
        run = _decoding(model_config, config, end, case.meta["pad"], released)
        out = run(params, z_egz, prompt)
        np.testing.assert_array_equal(np.asarray(out)[rows], want[rows, width:])

    if not case.config.conditional:
        check(False, slice(None))
        return
    if name == "greedy_ids_rp1.0":  # a prompt without padding needs no imitation
        check(False, case.data["in/condition_mask"].all(axis=1))
    check(True, slice(None))


@cache
def _weighing(config: della.DellaConfig):
    """(params, batch, noise_egz) -> log p(x | z), log p(z), log q(z | x), KL per dimension,
    posterior means.
    """
    model, chain = _without_bow(config)

    def weigh(params, batch, noise_egz):
        post = model.post.encode(params, batch)
        pick = layerwise.reparameterized
        walked = layerwise.walk(chain, params, pick, noise_egz, text_egcz=post.text_egcz)
        ctx = model.gen.prepare(params, batch)
        log_lik_e = per_example(model.gen.log_lik(params, ctx, walked.z_egz), batch)
        prior, posterior = (layerwise.clipped(chain, g) for g in (walked.prior, walked.posterior))
        log_p_e, log_q_e = (gaussian.log_density(g, walked.z_egz) for g in (prior, posterior))
        kl_egz = gaussian.kl(posterior, prior)
        return log_lik_e, log_p_e, log_q_e, kl_egz, walked.posterior.mean_egz

    return compiled(weigh)


@pytest.fixture(scope="module")
def weigh(scored):
    """`_weighing` of the noise alone."""
    config, params = _shared(scored)
    return partial(_weighing(config), params, scored.batch)


def test_likelihood_with_the_stored_noise(scored, weigh):
    """The released estimator, layer means and all, from our densities."""
    case, groups = scored, scored.config.groups
    sample = [np.asarray(a)[None] for a in weigh(case.latents("iw/sample_eps"))[:3]]
    case.close(sample[0][0], "iw/sample_log_gen", "loss")
    log_w_e = compat.log_likelihood(*sample, groups=groups)
    case.close(log_w_e, "iw/sample_log_likelihood", "density")

    first, *draws = [weigh(noise_egz) for noise_egz in case.latents("iw/eval_eps")]
    draws_ke = [np.array([draw[i] for draw in draws]) for i in range(3)]
    actual = compat.corpus(
        compat.log_likelihood(*draws_ke, groups=groups),
        -draws_ke[0].mean(axis=0),
        compat.divergence(np.asarray(first[3]).sum(axis=2), case.objective.free_bits_nats),
        int(case.real.sum()),
    )
    case.close(actual.ppl, "iw/eval_ppl", rtol=1e-3)
    case.close(actual.kl, "iw/eval_kl", "density")
    case.close(actual.nll, "iw/eval_nll", "loss")
    case.close(actual.elbo, "iw/eval_elbo", "density")


def test_active_units_with_the_stored_noise(scored, weigh):
    passes = [np.asarray(weigh(noise)[4]) for noise in scored.latents("au/eps")]
    assert compat.active_share(*passes) == scored.data["au/proportion"]
