"""Token log-probabilities of a sentence, given its own latent and given one from the prior."""

from typing import NamedTuple

import numpy as np

from jvae.demo.state import Demo
from jvae.inference.scoring import TokenLogProbs


class Scored(NamedTuple):
    """Log p of each token under a latent, and which latent that is."""

    condition: str
    tokens: list[str]
    nats: list[float]


def token_log_probs(demo: Demo, text: str, seed: int = 0) -> list[Scored]:
    """Scores a sentence with its own latent and, for comparison, with a draw from the prior.

    A language model, which has no latent, scores it once.
    """
    vae = demo.vae
    if not demo.has_latent:
        return [_scored("the tokens before", vae.token_log_probs([text])[0])]
    z_egz = np.concatenate([vae.encode([text]), vae.sample_prior(1, seed)])
    posterior, prior = vae.token_log_probs([text, text], z_egz=z_egz)
    return [_scored("its own latent", posterior), _scored("a latent drawn from the prior", prior)]


def _scored(condition: str, scores: TokenLogProbs) -> Scored:
    return Scored(condition, [_readable(token) for token in scores.tokens], scores.nats.tolist())


def _readable(token: str) -> str:
    """A token without the signs that byte-level and SentencePiece tokenizers use for spaces."""
    text = token.translate({ord("Ġ"): " ", ord("▁"): " ", ord("Ċ"): "⏎"})
    return text if text.strip() else "␣"
