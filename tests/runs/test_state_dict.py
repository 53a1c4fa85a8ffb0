import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jvae.parallel.mesh import make_mesh
from jvae.runs.state_dict import checksums, nested


@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8, jnp.float8_e4m3fn]
)
def test_every_flipped_bit_and_swap_changes_the_checksum(dtype):
    raw = np.random.default_rng(0).integers(0, 256, (3, 4, jnp.dtype(dtype).itemsize), np.uint8)

    def checksum(raw):
        array = jnp.asarray(raw.view(dtype)[..., 0])
        assert array.dtype == dtype
        return checksums({"x": array})["x"]

    want = checksum(raw)
    for place in np.ndindex(*raw.shape):
        for bit in range(8):
            raw[place] ^= 1 << bit
            assert checksum(raw) != want
            raw[place] ^= 1 << bit
    assert checksum(raw) == want
    assert checksum(raw[::-1].copy()) != want
    assert checksum(raw[:, ::-1].copy()) != want


@pytest.mark.multidevice
def test_checksum_does_not_depend_on_shards():
    x = jax.random.normal(jax.random.key(0), (8, 8))
    sharding = NamedSharding(make_mesh({"data": 4, "fsdp": 2}), PartitionSpec("data", "fsdp"))
    assert checksums([x]) == checksums([jax.device_put(x, sharding)])


def test_scalars_and_flags():
    one, other = checksums([jnp.int32(3), jnp.array([True, False])]).values()
    assert one == 3 and other == 1


def test_nested_by_path():
    assert nested({"a": (1, {"b": 2}), "c": 3}) == {"a": {"0": 1, "1": {"b": 2}}, "c": 3}
