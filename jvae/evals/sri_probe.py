"""Classification from few labels as measured by Pang et al. 2021: `--config.evals.protocol=sri`.

The labelled sentences are the first 100, 500, 1,000 and 2,000 of the training split, not random
draws. Features are means over 200 chains (`evals.chains`), or posterior means of a model with an
encoder. A linear layer is trained by SGD with early stopping on the validation split; the logistic
regression of `--mode=probe` on the same sentences is reported for comparison. Source: the released
`semi_sup_classification.py`. Deviation: no dropout in the chains that compute the features.
"""

from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from jvae.api import Params, has_latent
from jvae.errors import ConfigError, DataError
from jvae.evals import evaluation
from jvae.evals import probe as probes
from jvae.evals.card import Report
from jvae.evals.likelihood import draw_sentences
from jvae.evals.probing import LABEL, labels_of
from jvae.evals.run_card import card_of
from jvae.parallel import processes
from jvae.runs import build
from jvae.runs.workdir import write_text

SIZES = (100, 500, 1_000, 2_000)
RUNS = 20  # runs of SGD from different initial weights
RATE, CLIP, BATCH, EPOCHS = 1.0, 5.0, 32, 100
PATIENCE, HALVINGS = 2, 5  # bad epochs before a halving; number of halvings


class Split(NamedTuple):
    """Features of sentences, their labels from 0, and their numbers of words."""

    feature_ed: Float[np.ndarray, "e d"]
    label_e: Int[np.ndarray, "e"]
    words_e: Int[np.ndarray, "e"]

    def first(self, count: int) -> "Split":
        return Split(*(part[:count] for part in self))


class Layer(NamedTuple):
    """A linear classifier."""

    kernel_dc: Float[np.ndarray, "d c"]
    bias_c: Float[np.ndarray, "c"]

    def log_probs(self, feature_ed: np.ndarray) -> Float[np.ndarray, "e c"]:
        score_ec = feature_ed @ self.kernel_dc + self.bias_c
        score_ec = score_ec - score_ec.max(axis=1, keepdims=True)
        return score_ec - np.log(np.exp(score_ec).sum(axis=1, keepdims=True))

    def loss(self, split: Split) -> float:
        """Mean cross-entropy in nats."""
        log_p_ec = self.log_probs(split.feature_ed)
        return -float(np.mean(log_p_ec[np.arange(len(log_p_ec)), split.label_e]))


def sgd(train: Split, valid: Split, classes: int, seed: int) -> Layer:
    """The published training: returns the layer with the lowest validation loss.

    Each batch has sentences of one length. After two epochs without a lower validation loss, the
    best weights are restored and the rate is halved; training ends at the fifth halving or at
    epoch 100.
    """
    rng, width = np.random.default_rng(seed), train.feature_ed.shape[1]
    edge = width**-0.5
    shape = (width, classes)
    layer = Layer(rng.uniform(-edge, edge, shape), rng.uniform(-edge, edge, classes))
    best, lowest, rate, bad, halved = layer, layer.loss(valid), RATE, 0, 0
    for _ in range(EPOCHS):
        for ids in _batches(train.words_e, rng):
            layer = _updated(layer, train.feature_ed[ids], train.label_e[ids], rate)
        loss = layer.loss(valid)
        if loss < lowest:
            best, lowest, bad = layer, loss, 0
            continue
        bad += 1
        if bad == PATIENCE:
            layer, rate, bad, halved = best, rate / 2, 0, halved + 1
            if halved == HALVINGS:
                break
    return best


def _batches(words_e: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Batches of sentences of equal length, in random order."""
    batches = []
    for words in np.unique(words_e):
        order = rng.permutation(np.flatnonzero(words_e == words))
        batches += [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
    return [batches[i] for i in rng.permutation(len(batches))]


def _updated(layer: Layer, feature_ed: np.ndarray, label_e: np.ndarray, rate: float) -> Layer:
    """One step of SGD on the mean cross-entropy, its gradient clipped."""
    error_ec = np.exp(layer.log_probs(feature_ed))
    error_ec[np.arange(len(label_e)), label_e] -= 1
    error_ec /= len(label_e)
    kernel_dc, bias_c = feature_ed.T @ error_ec, error_ec.sum(axis=0)
    norm = np.sqrt((kernel_dc**2).sum() + (bias_c**2).sum())
    scale = rate * min(1.0, CLIP / max(float(norm), 1e-12))
    return Layer(layer.kernel_dc - scale * kernel_dc, layer.bias_c - scale * bias_c)


def probe(run: build.Run, mesh: Mesh, params: Params, step: int) -> Report:
    """Adds rows for every size the training split allows; writes `eval/probe.sri.json` and `.txt`.

    Raises: ConfigError for a model without a latent or data without labels.
    """
    cfg = evaluation.settings(run.config)
    if not has_latent(run.model):
        raise ConfigError(f"probe: {run.config.name} has no latent to probe")
    report = Report(f"{run.config.name}, probes as SRI", card_of(run, cfg, step, "test"))
    report.card.baselines = {"sri": "untrained model"}
    weights = {"trained": params, "untrained": evaluation.untrained(run, mesh)}
    ids = {
        "train": np.arange(min(max(SIZES), len(run.data["train"]))),
        **{
            name: draw_sentences(
                len(run.data[name]), cfg.sentences or len(run.data[name]), cfg.seed
            )
            for name in ("valid", "test")
        },
    }
    kind, labels = _labels(run, cfg.factor, ids)
    with evaluation.timed(report, "encode_s"):
        splits = {
            who: {name: _split(run, weights_of, name, ids[name], labels[name]) for name in ids}
            for who, weights_of in weights.items()
        }
    with evaluation.timed(report, "probe_s"):
        for size in SIZES:
            _add(report, kind, size, splits)
    report.card.sentences = len(ids["test"])
    chains = f"means of {cfg.chains} chains" if run.model.post.sampler else "posterior means"
    report.notes.append(f"Features: {chains}; SGD: {RUNS} runs; baseline: untrained model.")
    if processes.first():
        write_text(run.workdir / "eval" / "probe.sri.json", report.to_json())
        write_text(run.workdir / "eval" / "probe.sri.txt", report.table() + "\n")
    return report


def _labels(
    run: build.Run, factor: str, ids: dict[str, np.ndarray]
) -> tuple[str, dict[str, np.ndarray]]:
    """The name of the labels and their numbers in every split.

    Raises: ConfigError for an unknown factor; DataError for labels missing from training.
    """
    by_split = {name: labels_of(run, name) for name in ids}
    kind = LABEL if LABEL in by_split["train"] else factor
    if kind not in by_split["train"]:
        options = ", ".join(by_split["train"])
        raise ConfigError(f"evals.factor is {factor!r}; expected one of {options}")
    label_by_split = {name: by_split[name][kind][ids[name]] for name in ids}
    names = np.unique(label_by_split["train"])
    if unseen := sorted(
        set(map(str, np.concatenate([label_by_split["valid"], label_by_split["test"]])))
        - {*map(str, names)}
    ):
        raise DataError(f"labels {', '.join(unseen)} are not among the training sentences")
    return kind, {name: np.searchsorted(names, label_e) for name, label_e in label_by_split.items()}


def _split(
    run: build.Run, params: Params, name: str, ids: np.ndarray, label_e: np.ndarray
) -> Split:
    data = run.data[name]
    texts = [str(data.texts[i]) for i in ids]
    sources = None if data.lines.source is None else [str(data.lines.source[i]) for i in ids]
    cfg = evaluation.settings(run.config)
    vae = evaluation.text_vae_of(run, params, cfg.seed)
    sources = sources if vae.conditional else None
    chains = cfg.chains if run.model.post.sampler else None
    z_egz = vae.encode(texts, sources, chains=chains)
    return Split(probes.flat(z_egz), label_e, np.array([len(text.split()) for text in texts]))


def _add(report: Report, kind: str, size: int, splits: dict[str, dict[str, Split]]) -> None:
    name = f"sri_{kind}_{size}"
    available = splits["trained"]["train"].label_e
    if size > len(available) or len(np.unique(available[:size])) < 2:
        why = f"training has {len(available)}" if size > len(available) else "they have one label"
        report.notes.append(f"{name} is left out: {size} sentences are needed, {why}.")
        return
    accuracy = {who: accuracies(by_name, size) for who, by_name in splits.items()}
    logistic = {who: _logistic(by_name, size) for who, by_name in splits.items()}
    trained = accuracy["trained"]
    report.add(
        name,
        float(np.mean(trained)),
        "%",
        se=probes.sd(trained),
        baseline=float(np.mean(accuracy["untrained"])),
        note=f"SGD, sd of {len(trained)} runs",
    )
    report.add(f"{name}_logistic", logistic["trained"], "%", baseline=logistic["untrained"])


def accuracies(splits: dict[str, Split], size: int) -> list[float]:
    """Test accuracy in % of every run of SGD."""
    train, valid, test = splits["train"].first(size), splits["valid"], splits["test"]
    classes = int(max(part.label_e.max() for part in splits.values())) + 1
    layers = (sgd(train, valid, classes, seed) for seed in range(RUNS))
    said = (layer.log_probs(test.feature_ed).argmax(axis=1) for layer in layers)
    return [100.0 * float(np.mean(said_e == test.label_e)) for said_e in said]


def _logistic(splits: dict[str, Split], size: int) -> float:
    train, test = splits["train"].first(size), splits["test"]
    said_e = probes.predicted(train.feature_ed, train.label_e, test.feature_ed)
    return 100.0 * float(np.mean(said_e == test.label_e))
