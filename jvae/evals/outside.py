"""Scores of samples by other models: MAUVE from given features, perplexity under a jvae model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jvae.api import has_latent
from jvae.errors import ConfigError
from jvae.evals import mauve
from jvae.evals.card import Row
from jvae.evals.metric import METRICS, Evaluation
from jvae.evals.tokenization import unknown_in
from jvae.inference.text_vae import LoadedVAE
from jvae.runs import loading


@METRICS.register("mauve")
def mauve_of_features(at: Evaluation) -> list[Row]:
    """MAUVE between samples and references, from the features in `evals.features`."""
    file = Path(at.config.features)
    result = mauve.mauve(*mauve.read_features(file))
    note = f"{result.buckets} buckets, spread over {mauve.SEEDS} seeds; {file.name}"
    return [Row("mauve", result.value, "0-1", se=result.spread, note=note)]


@METRICS.register("external_perplexity")
def external_perplexity(at: Evaluation) -> list[Row]:
    """Perplexity of samples under the language model `evals.external`; control: test sentences.

    Raises: ConfigError for a model with a latent.
    """
    model = judge(at.config.external)
    texts = [text for text in at.samples["prior"] if text.strip()]
    lost = unknown_in(texts, model.decoder)
    control = perplexity(model, list(at.data.texts))
    return [
        Row(
            "external_ppl",
            perplexity(model, texts),
            "per token",
            control=control,
            note=f"control: test sentences; {lost.tokens_pct:.1f} % of the samples' tokens unknown",
        )
    ]


def judge(name: str) -> LoadedVAE:
    """The language model of `evals.external`. Raises: ConfigError for a model with a latent."""
    model = loading.load(name)
    if has_latent(model.model):
        raise ConfigError(f"evals.external={name}: has a latent; give a language model")
    return model


def perplexity(model: LoadedVAE, lines: Sequence[str]) -> float:
    """Perplexity per token of non-empty lines, with end-of-sentence tokens counted."""
    texts = [line for line in lines if line.strip()]
    nats = float(np.sum(model.nll(texts, k=1)))
    tokens = sum(len(ids) - 1 for ids in model.decoder.encode_batch(texts))
    return float(np.exp(nats / tokens))
