import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jvae.errors import ConfigError
from jvae.parallel import mesh as meshes

pytestmark = pytest.mark.multidevice


@pytest.mark.parametrize(
    ("cfg", "shape"),
    [
        ({"data": -1, "fsdp": 1, "tensor": 1}, (8, 1, 1)),
        ({"data": 2, "fsdp": -1, "tensor": 2}, (2, 2, 2)),
        ({"data": -1, "fsdp": 8}, (1, 8, 1)),
        ({"data": 2, "fsdp": 4, "tensor": 1}, (2, 4, 1)),
        ({"data": 2}, (2, 1, 1)),
        ({}, (1, 1, 1)),
    ],
)
def test_sizes(cfg, shape):
    mesh = meshes.make_mesh(cfg)
    assert mesh.axis_names == meshes.AXES
    assert tuple(mesh.shape.values()) == shape
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert meshes.row_shards(mesh) == shape[0] * shape[1]


def test_devices_may_be_given():
    devices = jax.devices()[4:6]
    mesh = meshes.make_mesh({"data": -1}, devices)
    assert list(mesh.devices.flat) == devices


def test_idle_devices_are_mentioned(caplog):
    meshes.make_mesh({"data": 4})
    assert "uses 4 of 8 devices" in caplog.text


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"data": 3}, "product 3 does not divide the 8 devices"),
        ({"data": -1, "tensor": 16}, "product 16 does not divide"),
        ({"data": -1, "fsdp": -1}, "only one size can be -1"),
        ({"data": 0}, "expected positive sizes"),
        ({"data": -2}, "expected positive sizes"),
        ({"dp": 2}, "unknown axis 'dp', expected data, fsdp, tensor"),
    ],
)
def test_wrong_sizes(cfg, message):
    with pytest.raises(ConfigError, match=message):
        meshes.make_mesh(cfg)


def test_rows_are_cut_over_data_and_fsdp():
    mesh = meshes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    x_bt = jax.device_put(jnp.arange(16).reshape(8, 2), meshes.batch_sharding(mesh))
    assert {shard.data.shape for shard in x_bt.addressable_shards} == {(2, 2)}
    starts = {shard.device.id: shard.index[0].start for shard in x_bt.addressable_shards}
    ids = np.vectorize(lambda device: device.id)(mesh.devices)
    # Both devices of a tensor pair hold the same rows.
    np.testing.assert_array_equal(
        np.vectorize(starts.get)(ids), np.arange(0, 8, 2).reshape(2, 2, 1).repeat(2, 2)
    )
    assert jax.device_put(x_bt, meshes.replicated(mesh)).is_fully_replicated


def test_part_of_the_rows_that_a_process_brings():
    mesh = meshes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    assert meshes.row_part(mesh, 8) == (0, 1)
    apart = {0: {(0, 2), (6, 8)}, 1: {(2, 4), (4, 6)}}  # as on a torus
    assert [meshes.part_of(apart, i) for i in apart] == [(0, 2), (1, 2)]
    shared = {0: {(2, 4)}, 1: {(0, 2)}, 2: {(0, 2)}, 3: {(2, 4)}}
    assert [meshes.part_of(shared, i) for i in shared] == [(1, 2), (0, 2), (0, 2), (1, 2)]
    for rows_of in ({0: {(0, 2), (2, 4)}, 1: {(2, 4), (4, 6)}}, {0: {(0, 2), (2, 4)}, 1: {(4, 6)}}):
        with pytest.raises(ConfigError, match="make data times fsdp a multiple"):
            meshes.part_of(rows_of, 0)


def test_rows_that_do_not_divide_take_fewer_devices(caplog):
    assert meshes.make_mesh_for({"data": -1}, 16).size == 8
    with caplog.at_level("WARNING"):
        assert meshes.make_mesh_for({"data": -1}, 12).size == 6
        assert meshes.make_mesh_for({"data": -1, "tensor": 2}, 6).shape["data"] == 3
        assert meshes.make_mesh_for({"data": -1}, 1).size == 1
    assert "12 rows of a batch cannot be split evenly over 8 devices: using 6" in caplog.text
    for sizes in ({"data": 8}, {"data": 2, "fsdp": -1}):
        with pytest.raises(ConfigError, match="into 8 parts, but data.batch_rows is 12"):
            meshes.make_mesh_for(sizes, 12)


def _bits(key, shape):
    return jax.random.bits(key, shape, jnp.uint32)


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_every_row_shard_draws_its_own_part(sizes):
    mesh = meshes.make_mesh(sizes)
    shards = meshes.row_shards(mesh)
    key = meshes.everywhere(jax.random.key(3, impl="rbg"), mesh)
    draw = jax.jit(meshes.under(mesh, lambda key: meshes.drawn_by_rows(_bits, key, (16, 5))))
    keys = [jax.random.fold_in(key, shard) for shard in range(shards)]
    parts = [_bits(key, (16 // shards, 5)) for key in keys]
    np.testing.assert_array_equal(draw(key), np.concatenate(parts))
    assert len(np.unique(draw(key))) == 80


@pytest.mark.parametrize("sizes, rows", [({"data": 8}, 12), ({"data": 1}, 16)])
def test_rows_that_no_shards_divide_are_drawn_whole(sizes, rows):
    mesh = meshes.make_mesh(sizes, jax.devices()[: sizes["data"]])
    key = jax.random.key(3, impl="rbg")
    draw = jax.jit(meshes.under(mesh, lambda key: meshes.drawn_by_rows(_bits, key, (rows, 5))))
    np.testing.assert_array_equal(draw(key), _bits(key, (rows, 5)))
