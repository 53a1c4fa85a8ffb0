import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from jvae.errors import ConfigError
from jvae.training import optim


def section(**changes):
    cfg = ConfigDict(
        {
            "lr": 2e-3,
            "schedule": "linear",
            "warmup_steps": 1,
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
            "weight_decay": 0.05,
            "no_decay": ("bias$",),
            "clip": 1.0,
        }
    )
    with cfg.unlocked(), cfg.ignore_type():
        cfg.update(changes)
    return cfg


def rates(total, n, **changes):
    return np.asarray(jax.vmap(optim.learning_rate(section(**changes), total))(jnp.arange(n)))


def test_linear_is_that_of_the_released_optimus():
    # The first four of six steps, as stored with the released model's updates.
    np.testing.assert_allclose(rates(6, 4), [0.0, 0.002, 0.0016, 0.0012], rtol=1e-6)
    np.testing.assert_allclose(rates(4, 6, warmup_steps=0) * 500, [1, 0.75, 0.5, 0.25, 0, 0])
    np.testing.assert_allclose(rates(3, 4, warmup_steps=3) * 500, [0, 1 / 3, 2 / 3, 0], rtol=1e-6)


def test_other_schedules():
    np.testing.assert_allclose(rates(9, 4, schedule="constant", lr=1.0), [0, 1, 1, 1])
    got = rates(10, 12, schedule="cosine", lr=1.0, warmup_steps=2)
    np.testing.assert_allclose(got[[0, 1, 2, 6, 10, 11]], [0, 0.5, 1, 0.5, 0, 0], atol=1e-6)
    got = rates(100, 17, schedule="rsqrt", lr=1.0, warmup_steps=4)
    np.testing.assert_allclose(got[[2, 4, 16]], [0.5, 1, 0.5], rtol=1e-6)
    assert rates(100, 1, schedule="rsqrt", lr=1.0, warmup_steps=0)[0] == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"no_decay": ("gamma",)}, "'gamma' matches no parameter .*paths: a/bias, a/kernel"),
    ],
)
def test_wrong_values(changes, message):
    with pytest.raises(ConfigError, match=message):
        optim.build(section(**changes), {"a": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}}, 10)


def test_unused_patterns_do_not_matter_without_decay():
    optim.build(section(no_decay=("gamma",), weight_decay=0.0), {"a": jnp.ones(2)}, 10)


def by_hand(params, grads_by_step, cfg, total):
    """transformers' AdamW in float64: decay after the update, eps before the bias correction."""
    params = {name: value.astype(np.float64) for name, value in params.items()}
    m = {name: np.zeros_like(value) for name, value in params.items()}
    v = {name: np.zeros_like(value) for name, value in params.items()}
    for step, grads in enumerate(grads_by_step):
        norm = np.sqrt(sum(np.sum(np.square(grad, dtype=np.float64)) for grad in grads.values()))
        lr = float(optim.learning_rate(cfg, total)(step))
        for name, grad in grads.items():
            grad = grad * min(1.0, cfg.clip / (norm + 1e-6))
            m[name] = cfg.b1 * m[name] + (1 - cfg.b1) * grad
            v[name] = cfg.b2 * v[name] + (1 - cfg.b2) * grad**2
            corrected = lr * np.sqrt(1 - cfg.b2 ** (step + 1)) / (1 - cfg.b1 ** (step + 1))
            params[name] -= corrected * m[name] / (np.sqrt(v[name]) + cfg.eps)
            if not name.endswith("bias"):
                params[name] -= lr * cfg.weight_decay * params[name]
    return params


@pytest.mark.parametrize("scale", [0.01, 30.0])  # below and above the clipping norm
def test_updates_are_those_of_transformers(scale):
    rng = np.random.default_rng(0)
    shapes = {"kernel": (5, 4), "bias": (4,)}
    draw = lambda: {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}  # noqa: E731
    start = draw()
    grads = [{n: scale * g for n, g in draw().items()} for _ in range(5)]
    cfg = section()
    tx = optim.build(cfg, jax.eval_shape(lambda: start), 6)
    params, state = start, tx.init(start)
    for grad in grads:
        updates, state = tx.update(grad, state, params)
        params = optax.apply_updates(params, updates)
    want = by_hand(start, grads, cfg, 6)
    for name in shapes:
        np.testing.assert_allclose(params[name] - start[name], want[name] - start[name], rtol=1e-3)


def test_no_decay_and_no_clipping():
    params = {"a": {"kernel": jnp.ones(3), "bias": jnp.ones(3)}}
    tx = optim.build(section(warmup_steps=0, clip=None), params, 10)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    np.testing.assert_array_equal(updates["a"]["bias"], np.zeros(3))
    np.testing.assert_allclose(updates["a"]["kernel"], -2e-3 * 0.05, rtol=1e-6)
