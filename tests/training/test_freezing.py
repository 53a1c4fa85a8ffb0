import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from jvae import config, models
from jvae.errors import ConfigError
from jvae.runs import build, schedules
from jvae.training import freezing, optim
from jvae.tree import named_leaves

AXES = {
    "stack": {"norm": ("layers", "norm"), "kernel": ("layers", "embed", "mlp")},
    "head": {"kernel": ("embed", None)},
}


def params_of(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"stack": {"norm": (4, 3), "kernel": (4, 3, 5)}, "head": {"kernel": (3, 2)}}
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s), jnp.float32),
        shapes,
        is_leaf=lambda s: isinstance(s, tuple),
    )


def plan_of(*rules, total=12):
    return freezing.make_plan(rules, params_of(), AXES, total)


LATE = (("norm", 0, 2, 0), ("norm", None, None, "1/4"), ("head", None, None, 3))


def test_split_cuts_stacked_leaves_by_layer_and_merge_undoes_it():
    params, plan = params_of(), plan_of(*LATE)
    trained, frozen = freezing.split(plan, params)
    assert set(named_leaves(trained)) == {"stack/norm/0-2", "stack/norm/2-4", "head/kernel"}
    assert set(named_leaves(frozen)) == {"stack/kernel"}
    np.testing.assert_array_equal(trained["stack"]["norm"]["2-4"], params["stack"]["norm"][2:])
    assert freezing.from_steps(plan)["stack"]["norm"] == {"0-2": 0, "2-4": 3}
    merged = freezing.merge(plan, trained, frozen)
    jax.tree.map(np.testing.assert_array_equal, merged, params)
    assert freezing.counts(plan, params, 0) == (6, 78)
    assert freezing.counts(plan, params, 2) == (6, 78)
    assert freezing.counts(plan, params, 3) == (18, 78)


def test_the_earliest_rule_counts_and_no_rule_means_everything():
    plan = plan_of(("norm", None, None, 7), ("norm", 1, 2, 2), ("norm", 1, 3, 5))
    assert plan is not None
    starts = [(p.layers, p.from_step) for p in plan.trained]
    assert starts == [((0, 1), 7), ((1, 2), 2), ((2, 3), 5), ((3, 4), 7)]
    assert plan_of() is None
    params = params_of()
    assert freezing.split(None, params) == (params, {})
    assert freezing.merge(None, params, {}) is params
    assert freezing.counts(None, params, 0) == (78, 78)


def test_layers_may_be_counted_by_a_size_of_the_model():
    def parts(rule, **sizes):
        plan = freezing.make_plan([rule], params_of(), AXES, 12, sizes)
        assert plan is not None
        return [(part.layers, part.from_step) for part in plan.trained]

    assert parts(("norm", 0, "layers_of_x", 2), layers_of_x=3) == [((0, 3), 2)]
    assert parts(("norm", "layers_of_x", None, 2), layers_of_x=3) == [((3, 4), 2)]
    with pytest.raises(ConfigError, match=r"trainable\[0\]: the model has no size 'layers_of_y'"):
        parts(("norm", 0, "layers_of_y", 0), layers_of_x=3)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (("bias", None, None, 0), r"trainable\[0\]: 'bias' matches no parameter .*head/kernel"),
        (("(", None, None, 0), r"'\('"),
        (("head", 0, 1, 0), "head/kernel has no layers"),
        (("norm", 2, 9, 0), r"layers 2\.\.9, but stack/norm has 4"),
        (("norm", None, None, "a sixth"), "from_step 'a sixth'"),
        (("norm", None, None, 13), "the run has 12 steps"),
        (("norm", None, None, 0, 1), "expected .pattern, first layer"),
        ("norm", "expected .pattern, first layer"),
    ],
)
def test_rules_that_cannot_be_used(rule, message):
    with pytest.raises(ConfigError, match=message):
        plan_of(rule)


def section(**changes):
    values = dict(lr=0.1, schedule="constant", warmup_steps=0, b1=0.9, b2=0.99, eps=1e-3)
    return ConfigDict(values | dict(weight_decay=0.0, no_decay=(), clip=None) | changes)


def updated(cfg, plan, steps):
    """Parameters after some updates with the gradients of half their squared distance from 1."""
    params = params_of()
    params["head"]["kernel"] = params["head"]["kernel"].at[0, 0].set(-0.0)
    trained, frozen = freezing.split(plan, params)
    tx = optim.build(cfg, trained, 12, freezing.from_steps(plan))

    @jax.jit
    def update(trained, state):
        grads = jax.tree.map(lambda p: p - 1.0, trained)
        updates, state = tx.update(grads, state, trained)
        return optax.apply_updates(trained, updates), state

    state, history = tx.init(trained), [params]
    for _ in range(steps):
        trained, state = update(trained, state)
        history.append(freezing.merge(plan, trained, frozen))
    return history


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_until_its_step_a_parameter_stays_and_then_starts_like_a_new_one(decay):
    history = updated(section(weight_decay=decay), plan_of(*LATE), 6)
    bits = lambda tree: np.asarray(tree["head"]["kernel"]).tobytes()  # noqa: E731
    assert bits(history[3]) == bits(history[0])  # -0.0 stays -0.0
    assert bits(history[4]) != bits(history[0])
    for step in range(7):
        np.testing.assert_array_equal(
            history[step]["stack"]["kernel"], history[0]["stack"]["kernel"]
        )
    early, late = history[0]["stack"]["norm"][:2], history[0]["stack"]["norm"][2:]
    alone = optax.adamw(0.1, b1=0.9, b2=0.99, eps=1e-3, weight_decay=decay)

    @jax.jit
    def update(p, state):
        updates, state = alone.update(p - 1.0, state, p)
        return p + updates, state

    for start, first, rows in ((early, 0, slice(0, 2)), (late, 3, slice(2, 4))):
        want, state = start, alone.init(start)
        for step in range(first, 6):
            want, state = update(want, state)
            got = history[step + 1]["stack"]["norm"][rows]
            np.testing.assert_allclose(got, want, rtol=1e-5)


def test_the_clipping_norm_does_not_count_what_waits():
    plan = plan_of(*LATE)
    cfg = section(clip=1.0, eps=1e3)  # with a large eps the update is linear in the gradient
    got = updated(cfg, plan, 1)
    grad = np.asarray(got[0]["stack"]["norm"][:2]) - 1.0
    want = -0.1 * grad / max(1.0, np.linalg.norm(grad)) / 1e3
    moved = np.asarray(got[1]["stack"]["norm"][:2] - got[0]["stack"]["norm"][:2])
    np.testing.assert_allclose(moved, want, rtol=2e-2)


def test_nothing_of_a_frozen_leaf_is_differentiated_or_remembered():
    plan = plan_of(("head", None, None, 0))
    params = params_of()
    trained, frozen = freezing.split(plan, params)
    tx = optim.build(section(), trained, 12, freezing.from_steps(plan))
    assert {leaf.shape for leaf in jax.tree.leaves(tx.init(trained))} <= {(3, 2), ()}

    def loss(trained):
        p = freezing.merge(plan, trained, frozen)
        h = jnp.einsum("bd,ldf->lbf", p["stack"]["norm"], p["stack"]["kernel"])
        return jnp.sum(h) + jnp.sum(jnp.sin(p["stack"]["norm"] @ p["head"]["kernel"]))

    shapes = {v.aval.shape for e in jax.make_jaxpr(jax.grad(loss))(trained).eqns for v in e.outvars}
    assert (4, 3, 5) not in shapes and (3, 2) in shapes


def base():
    cfg = config.load("adavae:base").copy_and_resolve_references()
    with cfg.unlocked():
        cfg.model.decoder.vocab = 50257
        cfg.model.decoder.vocab_multiple = 1
    return cfg


def test_the_published_counts():
    """Spec, section 4: mean, log-variance, pooling and ways for z; the encoder; the decoder."""
    cfg = base()
    model = build.build_model(cfg)
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    steps = cfg.train.steps
    with cfg.unlocked():
        cfg.optim.trainable = tuple(
            (p, a, b, 100 if start == 0 and ("encoder" in p or "norm" in p) else start)
            for p, a, b, start in cfg.optim.trainable
        )
    sizes = cfg.model.to_dict()
    plan = freezing.make_plan(cfg.optim.trainable, abstract, model.axes, steps, sizes)
    counts = [freezing.counts(plan, abstract, s)[0] for s in (0, 99, 100, steps // 6 - 1)]
    assert counts == [14_248_769, 14_248_769, 15_854_913, 15_854_913]
    trained, total = freezing.counts(plan, abstract, steps // 6)
    assert trained == 18_237_249
    stack = sum(
        leaf.size
        for part in ("embed", "layers", "norm")
        for leaf in jax.tree.leaves(abstract["decoder"][part])
    )
    assert stack == 124_439_808  # one copy of GPT-2
    assert total - trained == 124_401_408
    assert round(100 * trained / (total - trained), 2) == 14.66


def test_the_published_schedules():
    cfg = base()
    beta = schedules.build(cfg.objective.beta, cfg.train.steps)
    got = [float(beta(s)) for s in (0, 1375, 2000, 2752, 5499, 5500)]
    np.testing.assert_allclose(got, [0, 0, 0.4538, 1, 1, 0], atol=1e-4)
    rate = optim.learning_rate(cfg.optim, cfg.train.steps)
    assert float(rate(3665)) == pytest.approx(5e-5)
    assert float(rate(0)) > 0 and float(rate(cfg.train.steps - 1)) == 0
    assert models.family("adavae").limits(build.model_config(cfg)) == {"enc": 1024, "dec": 1024}
