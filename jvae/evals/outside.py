"""What other models say of the samples: features of a large one, a language model of ours."""

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
    judge = loading.load(at.config.external)
    if has_latent(judge.model):
        raise ConfigError(
            f"evals.external={at.config.external}: has a latent; give a language model"
        )
    texts = [text for text in at.samples["prior"] if text.strip()]
    lost = unknown_in(texts, judge.decoder)
    control = _per_token(judge, list(at.data.texts))
    return [
        Row(
            "external_ppl",
            _per_token(judge, texts),
            "per token",
            control=control,
            note=f"control: test sentences; {lost.tokens_pct:.1f} % of the samples' tokens unknown",
        )
    ]


def _per_token(judge: LoadedVAE, lines: list[str]) -> float:
    nats = float(np.sum(judge.nll(lines, k=1)))
    tokens = sum(len(ids) - 1 for ids in judge.decoder.encode_batch(lines))
    return float(np.exp(nats / tokens))
