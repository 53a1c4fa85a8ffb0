"""The three lines of README.md, and the text tools, on finished runs.

JVAE_RUNS=runs/optimus-tiny:runs/sri-tiny pytest -m slow tests/test_runs.py
"""

import os
from pathlib import Path

import numpy as np
import pytest

import jvae

RUNS = [Path(folder) for folder in os.environ.get("JVAE_RUNS", "").split(":") if folder]
TEXTS = ["a man is playing a guitar in a park", "two girls chased a frisbee on a beach"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not RUNS, reason="JVAE_RUNS names no folders of finished runs"),
]


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: folder.name)
def test_the_three_lines_of_the_readme(folder, capsys):
    vae = jvae.load(folder)
    if vae.conditional:
        pytest.skip("the lines are those of a model that reads no source")
    z = vae.encode(TEXTS)
    texts = vae.decode(z[:1] + 0.5 * (z[1:] - z[:1]))
    with capsys.disabled():
        print(f"\n{folder.name}: {texts[0]!r}")
    assert z.shape == (2, *vae.model.latent_shape) and np.isfinite(z).all()
    assert len(texts) == 1 and texts[0].strip()
    np.testing.assert_allclose(z, np.concatenate([vae.encode([text]) for text in TEXTS]), atol=1e-5)
    nats = vae.nll(TEXTS, k=10)
    assert (nats > 5).all() and (nats < 60).all()
    for text, token_scores in zip(TEXTS, vae.token_log_probs(TEXTS), strict=True):
        assert (
            len(token_scores.tokens) == len(token_scores.nats) > len(text.split())
            and (token_scores.nats < 0).all()
        )
    if not z.size:
        return
    assert vae.interpolate(*TEXTS, 3)[0] == vae.reconstruct(TEXTS[:1])[0]
    assert len(vae.traverse(TEXTS[0], [0])[0]) == 7
    assert vae.neighbors(TEXTS[0], TEXTS[::-1], 1)[0].place == 1
