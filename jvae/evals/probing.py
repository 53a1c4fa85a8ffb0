"""What a trained run's latent encodes about labels or factors: probes, clusters and attribute
arithmetic, each with its baseline.
"""

from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from jvae.api import Batch, Params, has_latent
from jvae.data import grammar
from jvae.data.dataset import eval_batches
from jvae.errors import ConfigError
from jvae.evals import attribute, cluster, disentangle, evaluation
from jvae.evals import probe as probes
from jvae.evals.card import Report
from jvae.evals.latent import collect_posteriors
from jvae.evals.likelihood import draw_sentences
from jvae.evals.run_card import card_of
from jvae.evals.settings import EvalConfig
from jvae.latent.geometry import agreement
from jvae.parallel import mesh as meshes
from jvae.runs import build
from jvae.runs.workdir import one_line, write_text

LABEL = "label"  # name of the labels read through `data.label`
FITTED = 1_000  # fewest training sentences for clusters and draws
EDITED = 250  # test sentences of each value that attribute arithmetic moves
SCALES = (1.0, 2.0, 3.0)  # multiples of the attribute's vector

Labels = dict[str, np.ndarray]  # for each kind of label, one label per sentence


def labels_of(run: build.Run, split: str) -> Labels:
    """The labels of a split: all factors of the embedded corpus, or those read by `data.label`.

    Raises: ConfigError if there are none.
    """
    data = run.data[split]
    if split in run.exact:
        # Sentence i is line i of its corpus, from which some lines may have been dropped.
        sentences = grammar.corpus(split, int(data.lines.line_no.max()))
        factor_ef = np.array([s.factors for s in sentences])[data.lines.line_no - 1]
        return {f.name: factor_ef[:, i] for i, f in enumerate(grammar.FACTORS)}
    if data.labels is None:
        raise ConfigError(
            f"the {split} split has no labels; train with data.label set to the column or "
            "key that holds them"
        )
    return {LABEL: np.array(list(data.labels))}


def probe(run: build.Run, mesh: Mesh, params: Params, step: int, split: str = "test") -> Report:
    """Probes and clusters a split's posterior means, and does attribute arithmetic with them;
    writes `eval/probe.json`, `eval/probe.txt` and `samples/attribute.txt`. If a mean consists of
    several vectors, they are flattened; linear probes also use their average.

    The baseline is the encoder at step 0 on the same labels; a row's note gives the scores for
    permuted labels and for always predicting the most frequent label. The baseline of attribute
    arithmetic is the vector of permuted labels, scaled to the same length.

    Raises: ConfigError for a model without a latent or data without labels.
    """
    cfg = evaluation.settings(run.config)
    if not has_latent(run.model):
        raise ConfigError(f"probe: {run.config.name} has no latent to probe")
    test, train = labels_of(run, split), labels_of(run, "train")
    # Training sentences to which probes and clusters are fitted.
    kinds = max(len(np.unique(label_e)) for label_e in train.values())
    most = max(kinds * max(cfg.per_label), FITTED)
    fitted = {kind: label_e[:most] for kind, label_e in train.items()}
    chosen = np.arange(len(run.data[split]))
    if cfg.sentences:
        chosen = draw_sentences(len(chosen), cfg.sentences, cfg.seed)
    test = {kind: label_e[chosen] for kind, label_e in test.items()}
    report = Report(f"{run.config.name}, probes", card_of(run, cfg, step, split))
    report.card.sentences = len(chosen)
    report.card.baselines = {
        "probe": "untrained model",
        "attribute": "vector of permuted labels",
    }

    def features(weights: Params, name: str, ids: np.ndarray) -> np.ndarray:
        data = run.data[name]
        sharding = meshes.batch_sharding(mesh)
        rows: Iterator[Batch] = (
            jax.device_put(b, sharding) for b in eval_batches(data, run.eval_rows, ids)
        )
        key = jax.random.key(cfg.seed)
        posts = collect_posteriors(run.model, weights, rows, key, cap=len(ids))
        return posts.mean_egz

    few = next(iter(test)) if cfg.factor not in test else cfg.factor
    if few != cfg.factor and LABEL not in test:
        raise ConfigError(f"evals.factor is {cfg.factor!r}; expected one of {', '.join(test)}")
    with evaluation.timed(report, "encode_s"), meshes.inside(mesh):
        both = [params, evaluation.untrained(run, mesh)]
        test_egz = [features(weights, split, chosen) for weights in both]
        first = np.arange(min(most, len(run.data["train"])))
        train_ed = [probes.flat(features(weights, "train", first)) for weights in both]
    test_ed = [probes.flat(mean_egz) for mean_egz in test_egz]
    several = run.model.groups == "vector" and run.model.latent_shape[0] > 1
    averaged_ed = [probes.flat(mean_egz.mean(axis=1)) for mean_egz in test_egz] if several else []
    with evaluation.timed(report, "probe_s"):
        for kind, label_e in test.items():
            if len(np.unique(label_e)) > 1:
                _linear(report, kind, test_ed, label_e, cfg.seed)
                if averaged_ed:
                    _linear(report, kind, averaged_ed, label_e, cfg.seed, "_mean_vector")
            else:
                report.notes.append(
                    f"probe_{kind} is left out: all {len(label_e)} sentences have one label."
                )
    with evaluation.timed(report, "few_labels_s"):
        _few(report, few, train_ed, fitted[few], test_ed, test[few], cfg)
    with evaluation.timed(report, "cluster_s"):
        _clusters(report, few, train_ed, test_ed, test[few], cfg.seed)
    if len(fitted) > 1:
        with evaluation.timed(report, "factors_s"):
            _factors(report, train_ed, fitted, cfg.seed)
    with evaluation.timed(report, "attribute_s"):
        named = [names(few, labels[few]) for labels in (fitted, test)]
        vectors = train_ed[0], test_ed[0]
        samples = _attribute(report, few, run, params, split, chosen, *vectors, *named)
    write_text(run.workdir / "samples" / "attribute.txt", "".join(f"{s}\n" for s in samples))
    write_text(run.workdir / "eval" / "probe.json", report.to_json())
    write_text(run.workdir / "eval" / "probe.txt", report.table() + "\n")
    return report


def _linear(
    report: Report,
    kind: str,
    test_ed: list[np.ndarray],
    label_e: np.ndarray,
    seed: int,
    suffix: str = "",
) -> None:
    accuracy, baseline = (probes.linear_probe(x_ed, label_e, seed=seed) for x_ed in test_ed)
    chance = probes.linear_probe(test_ed[0], probes.permuted(label_e, seed), seed=seed)
    name = f"probe_{kind}{suffix}"
    _scores(report, name, accuracy, baseline, chance, f"sd of {accuracy.runs} folds")
    if few := probes.rare(label_e):
        named = zip(names(kind, np.array(list(few))), few.values(), strict=True)
        counted = ", ".join(f"{name} ({n})" for name, n in named)
        report.notes.append(
            f"{name}: labels with fewer sentences than the {accuracy.runs} folds: {counted}. "
            "They are scored like the others; one with a single sentence is never predicted."
        )


def _scores(
    report: Report,
    name: str,
    accuracy: probes.Accuracy,
    baseline: probes.Accuracy,
    chance: probes.Accuracy,
    note: str,
) -> None:
    """Adds rows of accuracy, balanced accuracy and macro F1."""
    note += f"; permuted {chance.mean:.1f}, most frequent {accuracy.majority:.1f}"
    report.add(name, accuracy.mean, "%", se=accuracy.sd, baseline=baseline.mean, note=note)
    for part in ("balanced", "f1"):
        note = f"permuted {getattr(chance, part):.1f}"
        report.add(
            f"{name}_{part}",
            getattr(accuracy, part),
            "%",
            baseline=getattr(baseline, part),
            note=note,
        )


def _few(
    report: Report,
    kind: str,
    train_ed: list[np.ndarray],
    label_e: np.ndarray,
    test_ed: list[np.ndarray],
    test_label_e: np.ndarray,
    cfg: EvalConfig,
) -> None:
    seed, sizes = cfg.seed, cfg.per_label
    trained, baseline = (
        probes.low_resource(x_ed, label_e, y_ed, test_label_e, sizes, seed=seed)
        for x_ed, y_ed in zip(train_ed, test_ed, strict=True)
    )
    shuffled = probes.permuted(label_e, seed)
    chance = probes.low_resource(train_ed[0], shuffled, test_ed[0], test_label_e, sizes, seed=seed)
    for size, accuracy in trained.items():
        fewest = min(np.unique(label_e, return_counts=True)[1])
        count = f"{size}" if fewest >= size else f"{fewest} to {size}"
        draws = f"{accuracy.runs} draws, their sd" if accuracy.runs > 1 else "one draw"
        note = f"{count} of each label; {draws}"
        _scores(report, f"probe_{kind}_each_{size}", accuracy, baseline[size], chance[size], note)
    for size in sizes:
        if fault := probes.budget_fault(label_e, size):
            report.notes.append(f"probe_{kind}_each_{size} is left out: {fault} in training.")
    if unseen := sorted(set(names(kind, test_label_e)) - set(names(kind, label_e))):
        report.notes.append(
            f"probe_{kind}: labels that no training sentence has, so that none is predicted: "
            f"{', '.join(map(str, unseen))}."
        )


def _clusters(
    report: Report,
    kind: str,
    train_ed: list[np.ndarray],
    test_ed: list[np.ndarray],
    label_e: np.ndarray,
    seed: int,
) -> None:
    trained, baseline = (
        cluster.clustering(x_ed, y_ed, label_e, seed=seed)
        for x_ed, y_ed in zip(train_ed, test_ed, strict=True)
    )
    chance = cluster.clustering(
        train_ed[0], test_ed[0], probes.permuted(label_e, seed), restarts=1, seed=seed
    )
    low, high = min(trained.restarts), max(trained.restarts)
    note = f"likeliest of {len(trained.restarts)} restarts, {low:.1f} to {high:.1f}"
    note += f"; permuted {chance.accuracy:.1f}, most frequent {probes.majority(label_e):.1f}"
    name = f"cluster_{kind}"
    report.add(f"{name}_accuracy", trained.accuracy, "%", baseline=baseline.accuracy, note=note)
    report.add(f"{name}_nmi", trained.nmi, "0-1", baseline=baseline.nmi)


def _factors(report: Report, train_ed: list[np.ndarray], labels: Labels, seed: int) -> None:
    factor_ef = np.stack(list(labels.values()), axis=1)
    trained, baseline = (disentangle.disentanglement(x_ed, factor_ef, seed) for x_ed in train_ed)
    shuffled = np.random.default_rng(seed).permutation(factor_ef)
    chance = disentangle.disentanglement(train_ed[0], shuffled, seed)
    for name, value in trained._asdict().items():
        note = f"permuted {getattr(chance, name):.2f}"
        report.add(name, value, "0-1", baseline=getattr(baseline, name), note=note)
    report.details["factors"] = list(labels)


def names(kind: str, label_e: np.ndarray) -> np.ndarray:
    """Labels by name; factors of the embedded corpus are stored as numbers."""
    values = {factor.name: factor.values for factor in grammar.FACTORS}.get(kind)
    return label_e if values is None else np.array(values)[label_e]


def _attribute(
    report: Report,
    kind: str,
    run: build.Run,
    params: Params,
    split: str,
    chosen: np.ndarray,
    train_ed: np.ndarray,
    test_ed: np.ndarray,
    label_e: np.ndarray,
    test_label_e: np.ndarray,
) -> list[str]:
    """Moves test sentences by the vector of an attribute; returns the texts, line by line."""
    seed, shape = evaluation.settings(run.config).seed, run.model.latent_shape
    train_egz, test_egz = (x.reshape(-1, *shape).astype(np.float32) for x in (train_ed, test_ed))
    values = attribute.two_values(label_e[np.isin(label_e, test_label_e)])
    vector_gz = attribute.vector(train_egz, label_e, values)
    other_gz = attribute.vector(train_egz, probes.permuted(label_e, seed), values)
    other_gz *= np.linalg.norm(vector_gz) / max(float(np.linalg.norm(other_gz)), 1e-12)
    ends = [test_egz[test_label_e == value] for value in values]
    name = f"attribute_{kind}"
    order, chance = (agreement(v_gz, *ends) for v_gz in (vector_gz, other_gz))
    note = f"test pairs that the vector from {values[0]} to {values[1]} orders correctly"
    report.add(f"{name}_order", order, "0-1", baseline=chance, note=note)

    lines, vae = run.data[split].lines, evaluation.text_vae_of(run, params, seed)
    place_e = np.sort(
        np.concatenate([np.flatnonzero(test_label_e == value)[:EDITED] for value in values])
    )
    texts = [str(lines.text[i]) for i in chosen[place_e]]
    conditions = None if lines.source is None else [str(lines.source[i]) for i in chosen[place_e]]

    def decode(z_egz: np.ndarray, index_e: np.ndarray) -> list[str]:
        sources = [conditions[i] for i in index_e] if conditions else None
        return [one_line(text) for text in vae.decode(vae.placed(z_egz), sources=sources)]

    train = run.data["train"].lines.text
    judge = attribute.word_classifier([str(train[i]) for i in range(len(label_e))], label_e)
    known_e = test_label_e[place_e]
    right = 100.0 * float(np.mean(judge(texts) == known_e))
    edits = {}
    for scale in (0.0, *SCALES):
        at = (texts, known_e, test_egz[place_e])
        edit = edits[scale] = attribute.edit(decode, judge, *at, vector_gz, values, scale)
        control_edit = (
            attribute.edit(decode, judge, *at, other_gz, values, scale) if scale else edit
        )
        note = f"to {values[0]} {edit.toward[0]:.1f}, to {values[1]} {edit.toward[1]:.1f}"
        if not scale:
            note = (
                f"reconstructions; the classifier of words is right on {right:.1f} of {len(texts)}"
            )
        report.add(
            f"{name}_flip_{scale:g}", edit.flipped, "%", baseline=control_edit.flipped, note=note
        )
        note = "with the sentence itself"
        report.add(
            f"{name}_bleu_{scale:g}", edit.bleu, "0-100", baseline=control_edit.bleu, note=note
        )
    return [
        "\n".join(
            [
                f"{known_e[i]}\t{text}",
                *(f"{s:+g}\t{edit.texts[i]}" for s, edit in edits.items()),
                "",
            ]
        )
        for i, text in enumerate(texts)
    ]
