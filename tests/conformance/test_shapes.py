"""Shapes and dtypes of every function of the contract, from abstract values alone."""

import jax
import jax.numpy as jnp
import pytest

from jvae.api import DecodeState, Draws, Prompt, TextVAE, example_keys
from jvae.latent.elbo import measure
from jvae.latent.kl import kl
from jvae.tree import named_leaves

pytestmark = pytest.mark.fast_on(
    *(f"{system}-float32" for system in ("optimus", "della", "sri", "lstm_lm"))
)

AXES = {"embed", "vocab", "heads", "head", "mlp", "latent", "layers", "position", "type", "norm"}
PADDED_VOCAB = 32
NATS = jnp.float32


def outcome(model: TextVAE, batch) -> dict:
    """The result of every function, by name."""
    params = model.init(jax.random.key(0))
    gen, post, prior = model.gen, model.post, model.prior
    key_e = example_keys(jax.random.key(1), batch.id_e)
    cond = gen.condition(params, batch)
    q = post.encode(params, batch, cond=cond, key_e=key_e)
    metric_q = model.metric_post.encode(params, batch, cond=cond, key_e=key_e)
    z_kegz = post.sample(params, q, example_keys(key_e[0], batch.id_e, jnp.arange(4)))
    z_egz = prior.sample(params, key_e, cond)
    ctx = gen.prepare(params, batch, cond=cond)
    examples = len(batch.id_e)
    prompt = Prompt(jnp.zeros((examples, 3), jnp.int32), jnp.ones(examples, jnp.int32))
    first_ev, state = gen.start(params, z_egz, prompt, 9, cond)
    next_ev, stepped = gen.step(params, state, prompt.token_et[:, 0])
    return dict(
        params=params,
        q=q,
        cond=cond,
        z_kegz=z_kegz,
        kl=kl(params, post, q, z_kegz[0], prior, cond),
        z_egz=z_egz,
        mean=post.mean(params, q),
        log_q=model.metric_post.log_prob(params, metric_q, z_egz),
        log_prior=prior.log_prob(params, z_egz, cond),
        log_lik=gen.log_lik(params, ctx, z_egz),
        aux=gen.aux(params, ctx, Draws(z_kegz[: gen.draws], q, cond, batch.valid_e, key_e)),
        logits=(first_ev, next_ev),
        state=state,
        stepped=stepped,
        expanded=gen.expand(state, 3),
        reordered=gen.reorder(state, jnp.arange(4)),
        terms=measure(model, params, batch, jax.random.key(2), jax.random.key(3)),
    )


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def dtype(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def built(system, dtype) -> TextVAE:
    return system.build(dtype=dtype)


@pytest.fixture(scope="module")
def got(built, sentences) -> dict:
    return jax.eval_shape(lambda batch: outcome(built, batch), sentences.batch["packed"])


def is_of(leaf, shape: tuple[int, ...], dtype=NATS) -> bool:
    return leaf.shape == shape and leaf.dtype == dtype


def test_latents_and_densities(built, got, sentences):
    e = len(sentences.batch["packed"].id_e)
    latent = built.latent_shape
    assert is_of(got["z_kegz"], (4, e, *latent))
    assert is_of(got["kl"].nats_e, (e,))
    assert got["kl"].nats_egz is None or is_of(got["kl"].nats_egz, (e, *latent))
    assert is_of(got["z_egz"], (e, *latent))
    assert is_of(got["mean"], (e, *latent))
    assert is_of(got["log_q"], (e,))
    assert is_of(got["log_prior"], (e,))
    for leaf in jax.tree.leaves((got["q"], got["cond"])):
        assert leaf.shape[0] == e


def test_likelihood(got, sentences):
    batch = sentences.batch["packed"]
    assert is_of(got["log_lik"], batch.dec.token_bt.shape)
    for value in got["aux"].values():
        assert is_of(value, batch.id_e.shape)


def test_terms(got, sentences):
    e = sentences.batch["packed"].id_e.shape
    terms = got["terms"]
    assert is_of(terms.nll_e, e)
    assert is_of(terms.kl_e, e)
    assert is_of(terms.scored_e, e, jnp.int32)
    assert is_of(terms.valid_e, e, jnp.bool_)


def test_decoding(got, sentences):
    e = len(sentences.batch["packed"].id_e)
    for logits_ev in got["logits"]:
        assert is_of(logits_ev, (e, PADDED_VOCAB))
    for name, examples in (("state", e), ("stepped", e), ("expanded", 3 * e), ("reordered", 4)):
        assert isinstance(got[name], DecodeState)
        assert is_of(got[name].position_e, (examples,), jnp.int32)
    # A loop carries the state: no step may change its types.
    assert jax.tree.all(
        jax.tree.map(
            lambda a, b: is_of(a, b.shape, b.dtype) and a.weak_type == b.weak_type,
            got["state"],
            got["stepped"],
        )
    )


def test_parameters_are_float32_and_named(built, got):
    params, axes = named_leaves(got["params"]), built.axes
    is_names = lambda x: isinstance(x, tuple)  # noqa: E731
    assert jax.tree.structure(got["params"]) == jax.tree.structure(axes, is_leaf=is_names)
    names = dict(zip(params, jax.tree.leaves(axes, is_leaf=is_names), strict=True))
    for path, leaf in params.items():
        assert leaf.dtype == jnp.float32, path
        assert len(names[path]) == leaf.ndim, f"{path}: {names[path]} for {leaf.shape}"
        named_axes = [name for name in names[path] if name is not None]
        assert set(named_axes) <= AXES, f"{path}: {names[path]}"
        assert len(set(named_axes)) == len(named_axes), f"{path} repeats an axis: {names[path]}"
        assert "layers" not in named_axes or names[path][0] == "layers", path


def test_stacks_compute_in_their_dtype(built, got, dtype, sentences):
    """No matrix product of the decoder is wider than the config says, but for nats and latents."""
    program = jax.make_jaxpr(lambda p, b: built.gen.prepare(p, b))(
        got["params"], sentences.batch["packed"]
    )
    assert any(aval.dtype == dtype for aval in program.out_avals)
