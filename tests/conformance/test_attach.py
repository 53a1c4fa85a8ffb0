"""Short-run inference attached to the generator of every system."""

import jax
import numpy as np
import pytest

from jvae.api import example_keys
from jvae.latent.short_run import ChainConfig, attach
from jvae.parallel import mesh as meshes
from jvae.parallel import rules
from jvae.parallel.collectives import collectives

CHAIN = ChainConfig(2, "constant", step_size=0.1, temperature=1.0, chains=4)


@pytest.mark.fast_on("optimus", "sri")
def test_chains_follow_their_own_sentence_in_every_packing(system, sentences):
    if not system.has_latent:
        pytest.skip("no latent to infer")
    gen, prior = system.model.gen, system.model.prior

    @system.jit
    def ends(params, batch, key):
        key_e = example_keys(key, batch.id_e)
        cond = gen.condition(params, batch)
        found = [
            attach(gen, prior, cfg).encode(params, batch, cond=cond, key_e=key_e)
            for cfg in (CHAIN, ChainConfig(0, chains=4))
        ]
        joint = [gen.log_lik(params, gen.prepare(params, batch, cond=cond), z) for z in found]
        return *found, *(nats_bt.sum() for nats_bt in joint)

    by_packing = {}
    for packing in ("packed", "mixed"):
        batch = sentences.batch[packing]
        z_egz, start_egz, nats, start_nats = jax.device_get(
            ends(system.params, batch, jax.random.key(4))
        )
        by_packing[packing] = dict(zip(batch.id_e.tolist(), z_egz, strict=True))
        assert z_egz.shape[1:] == system.model.latent_shape
        assert np.max(np.abs(z_egz - start_egz)[batch.valid_e]) > 1e-2  # the chain moves
        assert np.isfinite(nats) and nats != start_nats
    for i, z_gz in by_packing["packed"].items():
        if i >= 0:
            np.testing.assert_allclose(by_packing["mixed"][i], z_gz, rtol=2e-3, atol=2e-3)


@pytest.mark.slow
@pytest.mark.multidevice
@pytest.mark.parametrize(
    "system", ["sri", pytest.param("optimus", marks=pytest.mark.slow)], indirect=True
)
def test_nothing_is_sent_between_devices_inside_a_chain(system, sentences):
    """Twice the steps run as many collectives, and each end point is that of one device."""
    parts = [sentences.batch[name] for name in ("packed", "mixed")]
    batch = jax.tree.map(
        lambda *leaves: np.concatenate(leaves)[: 4 * (len(leaves[0]) // 3)], *parts
    )
    gen, prior, key = system.model.gen, system.model.prior, jax.random.key(4)

    def ends_on(sizes, steps):
        mesh = meshes.make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])
        chain = ChainConfig(steps, "constant", step_size=0.1, temperature=1.0, chains=4)

        def ends(params, batch, key):
            key_e = example_keys(key, batch.id_e)
            cond = gen.condition(params, batch)
            return attach(gen, prior, chain).encode(params, batch, cond=cond, key_e=key_e)

        where = rules.shardings(system.model.axes, system.params, mesh)
        given = (
            jax.device_put(system.params, where),
            jax.device_put(batch, meshes.batch_sharding(mesh)),
            jax.device_put(key, meshes.replicated(mesh)),
        )
        compiled = jax.jit(meshes.under(mesh, ends)).lower(*given).compile()
        sent = collectives(compiled.as_text(), mesh.size)
        return sent, np.asarray(compiled(*given))

    spread = dict(data=2, fsdp=2, tensor=2)
    few, ends_egz = ends_on(spread, 3)
    many, _ = ends_on(spread, 6)
    assert few == many and "all-gather" in few
    _, alone_egz = ends_on(dict(data=1), 3)
    np.testing.assert_allclose(ends_egz, alone_egz, rtol=1e-4, atol=1e-5)
