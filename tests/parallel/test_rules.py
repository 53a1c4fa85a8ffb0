import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jvae.parallel import rules
from jvae.parallel.mesh import make_mesh
from jvae.tree import named_leaves, sizes

pytestmark = pytest.mark.multidevice

AXES = {
    "embed": {"table": ("vocab", "embed")},
    "block": {"qkv": ("layers", "embed", None, "heads", "head"), "bias": ("layers", None)},
    "scale": (),
}


@pytest.fixture
def mesh():
    return make_mesh({"data": 2, "fsdp": 2, "tensor": 2})


@pytest.fixture
def params():
    return {
        "embed": {"table": jnp.arange(6.0 * 4).reshape(6, 4)},
        "block": {"qkv": jnp.ones((3, 4, 3, 2, 5)), "bias": jnp.ones((3, 4))},
        "scale": jnp.ones(()),
    }


def test_specs_follow_the_table(mesh, params):
    got = rules.shardings(AXES, params, mesh)
    assert {name: sharding.spec for name, sharding in named_leaves(got).items()} == {
        "embed/table": P("tensor", "fsdp"),
        "block/qkv": P(None, "fsdp", None, "tensor", None),
        "block/bias": P(None, None),
        "scale": P(),
    }
    placed = jax.device_put(params, got)
    assert placed["embed"]["table"].addressable_shards[0].data.shape == (3, 2)
    np.testing.assert_array_equal(placed["embed"]["table"], params["embed"]["table"])


def test_what_does_not_divide_stays_whole(mesh, caplog):
    caplog.set_level(logging.INFO)
    assert rules.partition_spec(("vocab", "embed"), (7, 4), mesh, "a/b") == P(None, "fsdp")
    assert "a/b: vocab of size 7 is not divisible by mesh axis tensor=2" in caplog.text


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (("vocab",), "do not name the dimensions"),
        (None, "do not name the dimensions"),
        (("vocabulary", None), "unknown logical axis 'vocabulary', known: layers"),
        (("head", "head"), "'head' appears twice"),
        (("vocab", "mlp"), r"\['vocab', 'mlp'\] both go to the mesh axis 'tensor'"),
    ],
)
def test_wrong_axes_name_the_array(mesh, axes, message):
    with pytest.raises(ValueError, match=f"a/b: .*{message}"):
        rules.partition_spec(axes, (4, 4), mesh, "a/b")


def test_moments_follow_their_parameter(mesh, params):
    placement = rules.shardings(AXES, params, mesh)
    mask = jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(lambda step: 0.1 / (step + 1), weight_decay=0.1, mask=mask),
    )
    got = rules.optimizer_shardings(tx, jax.eval_shape(lambda: params), placement, mesh)
    specs = {name: sharding.spec for name, sharding in named_leaves(got).items()}
    moments = {name: spec for name, spec in specs.items() if "/mu/" in name or "/nu/" in name}
    assert len(moments) == 8
    for name, spec in moments.items():
        leaf = name.split("/mu/")[-1].split("/nu/")[-1]
        assert spec == named_leaves(placement)[leaf].spec
    assert {spec for name, spec in specs.items() if name not in moments} == {P()}
    state = jax.jit(tx.init, out_shardings=got)(jax.device_put(params, placement))
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))


def test_sizes_by_prefix(params):
    assert sizes(params) == {"block/bias": 12, "block/qkv": 360, "embed/table": 24, "scale": 1}
    assert sizes(params, depth=1) == {"block": 372, "embed": 24, "scale": 1}
    assert sizes(params, depth=0) == {"": 397}
