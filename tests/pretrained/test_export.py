"""Weights written in the layout of Hugging Face."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.models import FAMILIES
from jvae.pretrained import files, gpt2
from jvae.pretrained.export import export_backbone
from jvae.tree import map_named

ROWS = 24


@pytest.mark.parametrize("wide", ["mlp/up/kernel", None])
def test_a_file_has_one_number_type_and_says_which(tmp_path, wide):
    """Frozen weights in bfloat16, and kernels in float32 into which additions were merged."""
    family = FAMILIES["lm"]
    config = family.tiny(dict(dec=ROWS))
    abstract = jax.eval_shape(family.build(config).init, jax.random.key(0))
    rng = np.random.default_rng(0)

    def leaf(path, like):
        dtype = jnp.float32 if wide and wide in path else jnp.bfloat16
        return np.asarray(rng.normal(size=like.shape)).astype(dtype)

    params = map_named(leaf, abstract)
    fields = dataclasses.asdict(config.decoder)
    table = gpt2.table(fields["vocab"], "decoder")
    export_backbone(tmp_path / "out", gpt2.BACKBONE, table, params, fields)
    stated = json.loads((tmp_path / "out/config.json").read_text())["dtype"]
    assert stated == ("float32" if wide else "bfloat16")
    tensors = files.open_checkpoint(tmp_path / "out").tensors
    assert {str(np.asarray(tensor).dtype) for tensor in tensors.values()} == {stated}
    up = params["decoder"]["layers"]["mlp"]["up"]["kernel"][0]
    np.testing.assert_array_equal(np.asarray(tensors["transformer.h.0.mlp.c_fc.weight"]), up)
