"""Scores of texts by other models: MAUVE from given features, perplexity under a language model,
similarity under a sentence encoder.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jvae.api import has_latent
from jvae.errors import ConfigError
from jvae.evals import mauve
from jvae.evals.card import Row
from jvae.evals.collect import mean_se
from jvae.evals.metric import METRICS, Evaluation
from jvae.evals.tokenization import unknown_in
from jvae.inference.text_vae import LoadedVAE
from jvae.runs import loading, published


@METRICS.register("mauve")
def mauve_of_features(at: Evaluation) -> list[Row]:
    """MAUVE between samples and references, from the features in `evals.features`."""
    file = Path(at.config.features)
    result = mauve.mauve(*mauve.read_features(file))
    note = f"{result.buckets} buckets, spread over {mauve.SEEDS} seeds; {file.name}"
    return [Row("mauve", result.value, "0-1", se=result.spread, note=note)]


@METRICS.register("external_perplexity")
def external_perplexity(at: Evaluation) -> list[Row]:
    """Perplexity of samples under the language model `evals.external`; baseline: test sentences.

    Raises: ConfigError for a model with a latent.
    """
    model = judge(at.config.external)
    texts = [text for text in at.samples["prior"] if text.strip()]
    lost = unknown_in(texts, model.decoder)
    samples, tests = judged(model, texts), judged(model, list(at.data.texts))
    note = f"baseline: test sentences; {lost.tokens_pct:.1f} % of samples' tokens unknown"
    if samples.too_long or tests.too_long:
        note += f"; too long for the model and left out: {samples.too_long} samples, "
        note += f"{tests.too_long} test sentences"
    return [Row("external_ppl", samples.ppl, "per token", baseline=tests.ppl, note=note)]


@METRICS.register("similarity")
def similarity(at: Evaluation) -> list[Row]:
    """Cosine of sentences and their reconstructions under the encoder `evals.similarity`; baseline:
    reconstructions of other sentences.
    """
    embed = published.sentence_encoder(at.config.similarity)
    pairs = [pair.split("\n")[:2] for pair in at.samples["reconstructions"]]
    lines = [pair for pair in pairs if all(line.strip() for line in pair)]
    if not lines:
        return [Row("similarity", None, "-1 to 1", note="no reconstruction has text")]
    empty = len(pairs) - len(lines)
    note = f"{empty} of {len(pairs)} reconstructions are empty and left out" if empty else ""
    original_ed, decoded_ed = (embed([pair[i] for pair in lines]) for i in range(2))
    mean, se = mean_se(np.sum(original_ed * decoded_ed, axis=1))
    control, _ = mean_se(np.sum(original_ed * np.roll(decoded_ed, 1, axis=0), axis=1))
    return [Row("similarity", mean, "-1 to 1", se=se, baseline=control, note=note)]


def judge(name: str) -> LoadedVAE:
    """The language model of `evals.external`: a run, an export or a published decoder.

    Raises: ConfigError for a model with a latent.
    """
    model = published.language_model(name) if published.is_published(name) else loading.load(name)
    if has_latent(model.model):
        raise ConfigError(f"evals.external={name}: has a latent; give a language model")
    return model


class Judged(NamedTuple):
    """Perplexity per token, None without a line, and the number of lines that were too long."""

    ppl: float | None
    too_long: int


def judged(model: LoadedVAE, lines: Sequence[str]) -> Judged:
    """Perplexity of the lines that are not empty and fit the model, with end-of-sentence tokens
    counted.
    """
    texts = [line for line in lines if line.strip()]
    lengths = [len(ids) for ids in model.decoder.encode_batch(texts)]
    longest = model.limits["dec"]
    fitting = [(text, n) for text, n in zip(texts, lengths, strict=True) if n <= longest]
    too_long = len(texts) - len(fitting)
    if not fitting:
        return Judged(None, too_long)
    nats = float(np.sum(model.nll([text for text, _ in fitting], k=1)))
    with np.errstate(over="ignore"):
        return Judged(float(np.exp(nats / sum(n - 1 for _, n in fitting))), too_long)
