"""The train step of a model of which a part trains, and that part in stages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jvae.backbones.bert import BertConfig
from jvae.backbones.gpt2 import Gpt2Config
from jvae.data.rows import Encoded, pack_rows
from jvae.models import lm, optimus
from jvae.training import freezing, optim
from jvae.training.objectives import Objective
from jvae.training.step import init_state, make_train_step
from jvae.tree import named_leaves

STACK = Gpt2Config(2, 8, 2, 16, 12, positions=8, dropout=0.0, vocab_multiple=1)
OPTIM = dict(lr=0.1, schedule="constant", warmup_steps=0, b1=0.9, b2=0.99, eps=1e-8, clip=1.0)


@pytest.mark.slow
def test_only_what_the_plan_names_moves_and_only_from_its_step():
    model = lm.build(lm.LmConfig(STACK))
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    rules = (("attn_norm|mlp_norm", 0, 1, 0), ("decoder/norm/", None, None, 2))
    plan = freezing.make_plan(rules, abstract, model.axes, 4)
    trained = jax.eval_shape(lambda params: freezing.split(plan, params)[0], abstract)
    cfg = ConfigDict(OPTIM | dict(weight_decay=0.1, no_decay=()))
    tx = optim.build(cfg, trained, 4, freezing.from_steps(plan))
    side = Encoded.of([np.array([1, 5, 6, 2]), np.array([1, 7, 2])])
    batch = pack_rows(np.array([[0, 1]]), dict(dec=side), dict(dec=8), dict(dec=0))
    step = jax.jit(make_train_step(model, Objective(), lambda step: jnp.ones(()), tx, plan))

    state = jax.jit(lambda key: init_state(model.init(key), tx, plan))(jax.random.key(0))
    shapes = {leaf.shape for leaf in jax.tree.leaves(state.opt_state)}
    assert shapes == {(), (1, 8), (8,)}  # moments of one layer's norms and of the last norm
    history, norms = [named_leaves(jax.device_get(state.params))], []
    for _ in range(3):
        state, sums = step(state, batch, jax.random.key(1))
        history.append(named_leaves(jax.device_get(state.params)))
        norms.append(float(sums["grad_norm"].sum))
    for path in history[0]:
        moved = [not np.array_equal(history[i][path], history[i + 1][path]) for i in range(3)]
        if "layers" in path and "norm" in path:
            first = [h[path][0] for h in history]
            assert all(not np.array_equal(a, b) for a, b in zip(first, first[1:], strict=False))
            np.testing.assert_array_equal(history[3][path][1], history[0][path][1])
        else:
            assert moved == (
                [False, False, True] if path.startswith("decoder/norm/") else [False] * 3
            )
    assert all(np.isfinite(norms)) and min(norms) > 0


@pytest.mark.slow
def test_accumulating_parts_is_one_large_batch():
    """One update of a VAE, measured in one part and in four; noise belongs to examples."""
    sizes = dict(layers=1, width=8, heads=2, mlp=16, positions=8, dropout=0.0, vocab_multiple=1)
    stacks = BertConfig(vocab=12, **sizes), Gpt2Config(vocab=12, **sizes)
    model = optimus.build(optimus.OptimusConfig(*stacks, latent=3))
    ids = [np.array([1, *range(3, 3 + n), 2]) for n in (2, 5, 1, 4, 3, 2, 5)]
    side = Encoded.of(ids)
    rows = np.array([[0, 1], [2, -1], [3, 4], [5, 6]])
    batch = pack_rows(rows, dict(dec=side, enc=side), dict(dec=14, enc=14), dict(dec=0, enc=0))
    cfg = OPTIM | dict(weight_decay=0.0, no_decay=())
    params = jax.jit(model.init)(jax.random.key(0))
    tx = optim.build(cfg, jax.eval_shape(lambda: params), 4)
    state = jax.jit(lambda params: init_state(params, tx))(params)
    actual = []
    for parts in (1, 4):
        objective = Objective(rec_reduce="token_mean")
        beta = lambda step: jnp.float32(0.5)  # noqa: E731
        step = jax.jit(make_train_step(model, objective, beta, tx, accumulate=parts))
        actual.append(step(state, batch, jax.random.key(1)))
    (one, sums), (four, parts_sums) = actual
    for a, b in zip(jax.tree.leaves(one.opt_state), jax.tree.leaves(four.opt_state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    for name in sums:
        a, b = (np.asarray(s[name].sum / s[name].count) for s in (sums, parts_sums))
        np.testing.assert_allclose(a, b, rtol=2e-6, err_msg=name)
    assert float(sums["sentences"].sum) == 7
