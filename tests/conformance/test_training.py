"""Gradients, compute choices, dropout and the train step, for every system."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, Jaxpr

from jvae.api import example_keys
from jvae.latent.elbo import measure
from jvae.latent.iw_bound import score_batch
from jvae.training.objectives import Objective
from jvae.training.program import has_bound
from jvae.training.step import init_state, make_train_step
from jvae.training.tracking import tracked
from jvae.tree import named_leaves


@pytest.mark.fast_on("optimus", "della", "sri", "lstm_lm")
def test_z_moves_its_own_sentence_alone(system, sentences):
    batch = sentences.batch["packed"]
    examples = len(batch.id_e)
    model = system.model

    @system.jit
    def moved(params, z_egz, toward_egz):
        ctx = model.gen.prepare(params, batch)

        def along(own_e):
            tangent_egz = toward_egz * own_e[:, None, None]
            log_lik = lambda z: model.gen.log_lik(params, ctx, z)  # noqa: E731
            return jax.jvp(log_lik, (z_egz,), (tangent_egz,))[1]

        return jax.vmap(along)(jnp.eye(examples))

    rng = np.random.default_rng(7)
    z, toward = rng.normal(size=(2, examples, *model.latent_shape)).astype(np.float32)
    moved_ebt = np.asarray(moved(system.params, z, toward))
    slot_e = np.arange(examples) % batch.slots + 1
    row_e = np.arange(examples) // batch.slots
    own_ebt = np.zeros(moved_ebt.shape, bool)
    own_ebt[np.arange(examples), row_e] = batch.dec.segment_bt[row_e] == slot_e[:, None]
    want_ebt = own_ebt & batch.scored_bt[None] & system.has_latent
    np.testing.assert_array_equal(moved_ebt != 0, want_ebt)


@pytest.mark.fast_on("optimus", "della", "sri", "lm")
def test_validation_has_a_bound_unless_chains_infer_z(system):
    assert has_bound(system.model) == (not system.name.startswith("sri"))


# Recurrent networks know no such choices; the others have the layers of a system that is tried.
OTHER_LAYERS = ("adavae-all", "della", "optimus", "t5_vae")


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice",
    [dict(remat="dots", unroll=2), pytest.param(dict(remat="full"), marks=pytest.mark.slow)],
    ids=str,
)
def test_compute_choices_change_no_number(system, sentences, choice):
    if system.name not in OTHER_LAYERS:
        pytest.skip("no layers of its own to recompute or unroll")
    run = system.compile(system.build(**choice))
    got = jax.device_get(run(system.params, sentences.batch["packed"]))
    for got_part, want_part in zip(got, system("packed"), strict=True):
        got_leaves, want_leaves = named_leaves(got_part), named_leaves(want_part)
        assert got_leaves.keys() == want_leaves.keys()
        largest = max(np.max(np.abs(leaf), initial=1.0) for leaf in want_leaves.values())
        for name, leaf in want_leaves.items():
            np.testing.assert_allclose(
                got_leaves[name], leaf, rtol=1e-6, atol=1e-6 * largest, err_msg=name
            )


@pytest.mark.fast_on("optimus", "sri", "lstm_lm")
def test_dropout_is_on_with_a_key(system, sentences):
    values, _ = system("packed")
    quiet = values.mean_egz, values.nats_bt
    tokens_bt = sentences.batch["packed"].dec.token_bt
    first, again, other = (
        system.in_training(jax.random.key(seed), values.z_kegz[0], tokens_bt) for seed in (9, 9, 10)
    )
    for part in range(2):
        np.testing.assert_array_equal(first[part], again[part])
        assert np.all(np.isfinite(first[part]))
        if first[part].size:
            assert np.max(np.abs(first[part] - other[part])) > 1e-3
            assert np.max(np.abs(first[part] - quiet[part])) > 1e-3


@pytest.mark.fast_on("optimus", "sri", "lstm_lm")
def test_noisy_tokens_are_read_and_true_ones_scored(system, sentences):
    dec = sentences.batch["packed"].dec
    z_egz, drop = system("packed")[0].z_kegz[0], jax.random.key(9)
    changed_bt = np.where(dec.position_bt == 2, (dec.token_bt + 1) % sentences.start, dec.token_bt)
    clean_bt = system.in_training(drop, z_egz, dec.token_bt)[1]
    noisy_bt = system.in_training(drop, z_egz, changed_bt)[1]
    behind_bt = (dec.position_bt > 2) & (dec.segment_bt > 0)
    np.testing.assert_allclose(noisy_bt[~behind_bt], clean_bt[~behind_bt], rtol=1e-5, atol=1e-6)
    # No lower bound is right for every model and token; rounding is below 1e-5.
    assert np.all(np.abs(noisy_bt - clean_bt)[behind_bt & (dec.position_bt == 3)] > 1e-5)


# Without a chain the heads of priors and posteriors read zeros: only their biases have an effect.
HEADS = {f"{part}/head/chain/kernel" for part in ("prior", "posterior")}
UNREAD = {"della-offset": HEADS, "della-shared": HEADS}


@pytest.mark.fast_on("lstm_lm")
def test_train_step_is_traced_once(system, sentences):
    traces = collections.Counter()
    weights = collections.defaultdict(lambda: 0.1)  # every auxiliary term
    tx = optax.sgd(0.01)
    step = make_train_step(system.model, Objective(aux_weight=weights), lambda step: 0.5, tx)
    step = tracked(system.model, step)

    def counted(state, batch, base):
        traces["step"] += 1
        return step(state, batch, base)

    compiled = system.jit(counted, donate_argnums=0)
    abstract = jax.eval_shape(lambda key: init_state(system.model.init(key), tx), jax.random.key(0))
    state = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), abstract)
    state = state._replace(params=jax.tree.map(jnp.copy, system.params))
    for packing in ("packed", "mixed", "first"):
        before = jax.device_get(state.params)
        batch = sentences.batch[packing]
        state, sums = compiled(state, batch, jax.random.key(11))
        assert sums["finite"] == (1, 1)
        assert sums["sentences"].sum == np.sum(batch.id_e >= 0)
        assert sums["grad_norm"].sum > 0
        after = jax.device_get(state.params)
        changed = named_leaves(jax.tree.map(lambda a, b: np.any(a != b), before, after))
        same = {name for name, different in changed.items() if not different}
        assert same == UNREAD.get(system.name, set())
        assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(after))
    assert traces["step"] == 1
    assert int(state.step) == 3


@pytest.mark.slow
def test_training_and_evaluation_have_one_bound(system, sentences):
    """At the same draw, whatever prior and posterior there are."""
    model, batch, key = system.model, sentences.batch["packed"], jax.random.key(12)
    if not system.has_latent or model.post.sampler is not None:
        pytest.skip("has no KL in its loss")
    terms = jax.device_get(system.jit(lambda p: measure(model, p, batch, key))(system.params))
    scores = jax.device_get(score_batch(model, 1)(system.params, batch, key))
    for name, pair in dict(rec=(terms.nll_e, scores.rec_e), kl=(terms.kl_e, scores.kl_e)).items():
        got_e, want_e = (value_e[batch.valid_e] for value_e in pair)
        np.testing.assert_allclose(got_e, want_e, rtol=1e-5, atol=1e-4, err_msg=name)


def runs_of_marks(program, times: int = 1) -> collections.Counter:
    """How often each marked place of a program runs, loops counted."""
    program = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    counts = collections.Counter()
    for equation in program.eqns:
        if equation.primitive.name == "name":
            counts[equation.params["name"]] += times
        inner = (
            times * equation.params.get("length", 1) if "scan" in str(equation.primitive) else times
        )
        for part in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: isinstance(x, ClosedJaxpr | Jaxpr)
        ):
            if isinstance(part, ClosedJaxpr | Jaxpr):
                counts += runs_of_marks(part, inner)
    return counts


def marked(function, name: str):
    """The function, its results marked in traced programs."""

    def wrapper(*args, **kwargs):
        return jax.tree.map(lambda x: checkpoint_name(x, name), function(*args, **kwargs))

    return wrapper


@pytest.mark.parametrize("samples", [1, 6])
def test_samples_share_one_encoder_call(system, sentences, samples):
    model = system.model
    post = model.metric_post._replace(encode=marked(model.metric_post.encode, "encode"))
    gen = model.gen._replace(log_lik=marked(model.gen.log_lik, "log_lik"))
    score = score_batch(model._replace(post=post, gen=gen), samples, chunk=2, bounds=())
    batch = sentences.batch["packed"]
    program = jax.make_jaxpr(score)(system.params, batch, jax.random.key(0))
    key_e = example_keys(jax.random.key(0), batch.id_e)
    encode = functools.partial(model.metric_post.encode, key_e=key_e)
    leaves = len(jax.tree.leaves(jax.eval_shape(encode, system.params, batch)))
    counts = runs_of_marks(program)
    assert counts["encode"] == leaves
    assert counts["log_lik"] == (-(-samples // 2) if system.has_latent else 1)
