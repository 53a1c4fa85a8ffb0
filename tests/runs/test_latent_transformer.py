"""A model as a step of a scikit-learn pipeline."""

import pickle

import numpy as np
import pytest

import jvae
from jvae.errors import InputError, JvaeError

pytest.importorskip("sklearn")

from sklearn.base import clone  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.model_selection import cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402

from jvae.inference.text_vae import LoadedVAE  # noqa: E402
from jvae.runs import latent_transformer  # noqa: E402

TEXTS = ["a b", "b", "a a", "b b a", "a", "b b"] * 4
LABELS = [text.count("a") > 0 for text in TEXTS]


class Spelt(LoadedVAE):
    """The latent counts letters."""

    def __init__(self):
        from types import SimpleNamespace

        object.__setattr__(self, "model", SimpleNamespace(latent_shape=(1, 2)))

    def encode(self, texts, sources=None, **_):
        return np.array([[[t.count("a"), t.count("b")]] for t in texts], np.float32)

    def decode(self, z_egz, seed=None, sources=None, **_):
        return [f"{'a' * round(a)}{'b' * round(b)}" for ((a, b),) in np.asarray(z_egz).tolist()]


@pytest.fixture
def loads(monkeypatch):
    """The names that were loaded."""
    names = []

    def load(name):
        names.append(name)
        return Spelt()

    monkeypatch.setattr(latent_transformer.loading, "load", load)
    return names


def test_pipelines_are_fitted_cross_validated_and_copied(loads):
    pipe = make_pipeline(jvae.LatentTransformer("optimus-tiny"), LogisticRegression())
    assert pipe.fit(TEXTS, LABELS).score(TEXTS, LABELS) == 1.0
    assert cross_val_score(pipe, TEXTS, LABELS, cv=3).mean() == 1.0
    again = pickle.loads(pickle.dumps(pipe))
    assert (again.predict(TEXTS) == pipe.predict(TEXTS)).all()
    assert set(loads) == {"optimus-tiny"}
    step = pipe[0]
    assert step.get_feature_names_out().tolist() == ["z0", "z1"]
    assert step.inverse_transform(step.transform(["ab b"])) == ["abb"]
    assert step.transform([]).shape == (0, 2)
    for wrong in (np.ones((2, 1)), np.ones((1, 4)), np.ones(2)):
        with pytest.raises(InputError, match=r"expected latents of shape \(n, 2\), got"):
            step.inverse_transform(wrong)
    assert step.set_params(truncate=False).get_params()["truncate"] is False


def test_a_loaded_model_is_shared_by_copies_and_cannot_be_pickled():
    vae = Spelt()
    step = jvae.LatentTransformer(vae, batch_size=4)
    assert clone(step).model is vae and clone(step).batch_size == 4
    assert clone(step).fit_transform(TEXTS).shape == (24, 2)
    with pytest.raises(JvaeError, match="cannot be pickled"):
        pickle.dumps(step)
