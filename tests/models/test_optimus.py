"""The direction in which Optimus' encoder reads."""

import dataclasses

import jax
import numpy as np
import pytest

from jvae.data.rows import Encoded, pack_rows
from jvae.models import FAMILIES
from jvae.nn.backbone import BACKBONES


@pytest.mark.parametrize("causal", [True, False])
def test_a_causal_encoder_sees_no_later_token(causal):
    """The first state of two texts that begin with the same token."""
    family = FAMILIES["optimus"]
    tiny = family.tiny(dict(enc=23, dec=29))
    encoder = BACKBONES["llama"].tiny(23)
    model = family.build(dataclasses.replace(tiny, encoder=encoder, causal_encoder=causal))
    params = model.init(jax.random.key(0))
    texts = Encoded.of([np.array([5, 7, 2]), np.array([5, 11, 3, 4])])
    row = dict(enc=4, dec=4)
    batch = pack_rows(np.array([[0], [1]]), dict(enc=texts, dec=texts), row, dict(enc=0, dec=0))
    mean_egz = np.asarray(model.post.mean(params, model.post.encode(params, batch)))
    assert np.all(mean_egz[0] == mean_egz[1]) == causal
    assert np.any(mean_egz)
