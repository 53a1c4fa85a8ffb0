"""Text tools of parameters that lie on several devices: each works on its own texts."""

import jax
import numpy as np
import pytest

from jvae.api import Prompt, example_keys
from jvae.decode import DecodeConfig, decode
from jvae.parallel import mesh as meshes
from jvae.parallel import rules
from jvae.parallel.collectives import collectives

from .test_text_vae import TEXTS, system

SIZES = {
    "rows": dict(data=4),
    "rows and parameters": dict(data=2, fsdp=2),
    "heads too": dict(data=2, tensor=2),
}


def spread(name, sizes):
    """A system, its parameters on one device and on a mesh."""
    vae = system(name)
    mesh = meshes.make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])
    where = rules.shardings(vae.model.axes, vae.params, mesh)
    return vae, mesh, jax.device_put(vae.params, where)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_texts_and_latents_are_those_of_one_device(sizes):
    vae, mesh, params = spread("optimus", sizes)
    many = type(vae)(**(vars(vae) | dict(params=params)))
    assert meshes.mesh_of(params) == mesh and meshes.mesh_of(vae.params) is None
    z_egz = vae.encode(TEXTS)
    np.testing.assert_allclose(many.encode(TEXTS), z_egz, atol=1e-5)
    for way in ("greedy", "sample", "beam"):
        settings = dict(method=way, max_length=6, seed=3)
        assert many.decode(z_egz, **settings) == vae.decode(z_egz, **settings), way
    np.testing.assert_allclose(many.nll(TEXTS, k=2), vae.nll(TEXTS, k=2), rtol=1e-4)


@pytest.mark.parametrize("name", ["optimus", pytest.param("sri", marks=pytest.mark.slow)])
def test_a_sampler_sends_nothing_but_parameters(name):
    """Three times the tokens make no more collectives, and none without sharded parameters."""
    sent = {}
    for kind in ("rows", "rows and parameters"):
        vae, mesh, params = spread(name, SIZES[kind])
        ends = dict(end_id=vae.decoder.end_id, pad_id=vae.decoder.pad_id)

        def sample(params, key_e, length, vae=vae, ends=ends):
            gen = vae.model.gen
            prompt = Prompt(np.ones((len(key_e), 1), np.int32), np.ones(len(key_e), np.int32))
            settings = DecodeConfig(method="sample", max_length=length)
            z_egz = vae.model.prior.sample(params, key_e)
            return decode(gen, params, z_egz, prompt, key_e, settings, **ends).token_et

        key_e = example_keys(jax.random.key(1), np.arange(8, dtype=np.int32))
        key_e = jax.device_put(key_e, meshes.batch_sharding(mesh))
        run = jax.jit(meshes.under(mesh, sample), static_argnums=2)
        for length in (4, 12):
            text = run.lower(params, key_e, length).compile().as_text()
            sent[kind, length] = collectives(text, mesh.size, turns=length)
    assert sent["rows", 4] == sent["rows", 12] == {}
    few, many = (sent["rows and parameters", length] for length in (4, 12))
    assert few == many and set(few) == {"all-gather"}
