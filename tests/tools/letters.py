"""A model whose latent counts letters, so that what a demo answers can be read off."""

from types import SimpleNamespace

import numpy as np

from jvae.inference.scoring import TokenLogProbs
from jvae.inference.text_vae import LoadedVAE

TEXTS = ["a", "aa", "ab", "abbb", "aabbb", "bbbb"]
LABELS = {"first": ["a", "a", "a", "a", "a", "b"], "long": ["no", "no", "no", "yes", "yes", "yes"]}


class Spelt(LoadedVAE):
    """The latent counts a and b; its decoder writes as many of them, rounded."""

    def __init__(self, groups: int = 1) -> None:
        model = SimpleNamespace(latent_shape=(groups, 2), post=SimpleNamespace(support="space"))
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "settings", {})

    def encode(self, texts, sources=None, **_):
        return np.array([[[t.count("a"), t.count("b")]] for t in texts], np.float32)

    def sample_prior(self, n, seed=None, sources=None, *, prior=None, label=None):
        self.settings.update(seed=seed, prior=prior, label=label)
        return np.full((n, 1, 2), 2.0, np.float32)

    def decode(self, z_egz, seed=None, sources=None, **settings):
        self.settings.update(settings)
        return ["a" * round(float(a)) + "b" * round(float(b)) for ((a, b),) in z_egz]

    def token_log_probs(self, texts, sources=None, *, z_egz=None):
        z_egz = np.zeros((len(texts), 1, 1)) if z_egz is None else z_egz
        return [
            TokenLogProbs([*t, "▁"], np.full(len(t) + 1, -float(z.sum())))
            for t, z in zip(texts, z_egz, strict=True)
        ]
