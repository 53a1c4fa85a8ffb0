"""Label-conditional generation and transfer with the priors fitted to a run, in one table.

The table includes baselines: real test sentences (the score of a perfect model), the run's own
prior, which ignores labels, and a Gaussian per class fitted to shuffled labels. Transfer is
compared with the unchanged sentences, their reconstructions, and the vector between the mean
latents of two labels.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jvae.api import Params
from jvae.data import grammar
from jvae.errors import ConfigError
from jvae.evals import evaluation, outside, probe
from jvae.evals import label_metrics as metrics
from jvae.evals.card import aligned, clean, show
from jvae.evals.label_metrics import Generation, Oracle, Transfer
from jvae.evals.likelihood import draw_sentences
from jvae.evals.prior_fit import labels_by_name
from jvae.evals.run_card import card_of
from jvae.evals.split_latents import split_latents
from jvae.evals.text import REFERENCE_CAP
from jvae.fields import setting
from jvae.fitted import FITTED, Fitted, fit, transfer, transfers
from jvae.inference import checks
from jvae.inference.text_vae import LoadedVAE
from jvae.runs import build, priors
from jvae.runs.workdir import one_line, write_text

TEST, OWN, SHUFFLED = "test sentences", "own prior", "shuffled labels"
AS_THEY_ARE, RECONSTRUCTED, VECTOR = "as they are", "reconstructed", "mean difference"
_HEADS = {
    "by_label": "by label",
    "bleu": "BLEU test",
    "g": "G",
    "self_bleu": "self-BLEU",
    "dist_2": "dist-2",
    "source_bleu": "BLEU source",
    "reference_bleu": "BLEU reference",
}


@dataclasses.dataclass(frozen=True)
class ControlRequest:
    """The options of `--mode=control`."""

    references: str = setting(
        "", help="File of label<TAB>sentence<TAB>reference for transfer; empty: test sentences."
    )
    strengths: tuple[float, ...] = setting(
        (1.0, 2.0),
        low=0.0,
        high=1e3,
        empty=False,
        help="Transfer steps to measure, as multiples of the usual one.",
    )


class _Labelled(NamedTuple):
    """Sentences of a split, with the priors' numbers of their labels."""

    texts: list[str]
    label_n: np.ndarray


class _Latents(NamedTuple):
    """Posterior draws of the training split with the numbers of their labels."""

    z_ngz: np.ndarray
    number_n: np.ndarray


def control(
    run: build.Run,
    mesh: Mesh,
    params: Params,
    step: int,
    fitted: Sequence[Fitted],
    request: ControlRequest,
    name: str = "control",
) -> str:
    """Measures label-conditional priors, all for the same kind of labels, and returns the tables.

    The tables are also written to `eval/<name>.json` and `.txt`, the texts to `samples/<name>.txt`
    and `samples/<name>-transfer.txt`.

    Raises: ConfigError if the priors have different labels or a split lacks one of them; DataError
      if a file of references cannot be read.
    """
    labels = _labels_of(fitted)
    kind = fitted[0].about["label"]
    valid, test = (_labelled(run, split, kind, labels) for split in ("valid", "test"))
    referenced = metrics.read_references(request.references, labels) if request.references else None
    cfg = evaluation.settings(run.config)
    judge = outside.judge(cfg.external) if cfg.external else None
    sizes = cfg.sizes(len(run.data["test"]))
    oracle = Oracle(*valid)
    real = oracle.accuracy(*test)
    vae = evaluation.text_vae_of(run, params, cfg.seed)
    train = _train_latents(run, mesh, params, fitted[0], kind, labels)
    shuffled = fit(
        "gaussian",
        FITTED["gaussian"].options(),
        train.z_ngz,
        jax.random.key(cfg.seed),
        probe.permuted(train.number_n, cfg.seed),
        labels=labels,
        name=SHUFFLED,
        mesh=mesh,
    )
    systems = (shuffled, *fitted)
    per_label = max(1, sizes.generate // len(labels))
    goals = [label for label in labels for _ in range(per_label)]
    drawn = _generated(run, vae, systems, goals)
    references = _Labelled(test.texts[:REFERENCE_CAP], test.label_n[:REFERENCE_CAP])
    real_some = _some(references, per_label, cfg.seed)
    generation = {TEST: metrics.generation(oracle, *real_some, references.texts, members=True)}
    for system, texts in drawn.items():
        generation[system] = metrics.generation(oracle, texts, goals, references.texts)
    for system, texts in {TEST: real_some.texts, **drawn}.items():
        ppl = outside.judged(judge, texts).ppl if judge else None
        right = _grammatical(texts) if "test" in run.exact else None
        generation[system] = generation[system]._replace(ppl=ppl, grammatical=right)

    chosen = _some(test, max(1, (sizes.sentences or len(test.texts)) // len(labels)), cfg.seed)
    if referenced is not None:
        chosen = _Labelled(referenced.texts, np.array(referenced.label_n))
    goal_n = [labels[(labels.index(label) + 1) % len(labels)] for label in chosen.label_n]
    moved = _transferred(vae, chosen, goal_n, systems, train, request)
    target_texts = referenced and referenced.references
    transferred = {
        system: metrics.transfer(oracle, texts, goal_n, chosen.texts, target_texts)
        for system, texts in moved.items()
    }
    title = f"{run.config.name}, step {step}: generation and transfer by label"
    notes = [
        f"Labels: {', '.join(labels)}. Oracle: a classifier of words, fitted to {oracle.sentences} "
        f"validation sentences, right on {real.mean:.1f} ± {real.se:.1f} % of {len(test.texts)} "
        "test sentences.",
        f"Generation: {per_label} texts of each label. G is the geometric mean of accuracy and "
        "BLEU.",
        f"Transfer: {len(chosen.texts)} {'sentences with references' if referenced else TEST}, "
        "each to the next label; xN is N times the step in the latent space.",
    ]
    tables = [_table("generation", generation), _table("transfer", transferred)]
    text = "\n\n".join([title, *tables, "\n".join(notes)])
    content = {
        "title": title,
        "labels": labels,
        "oracle": {"sentences": oracle.sentences, **real._asdict()},
        "generation": generation,
        "transfer": transferred,
        "each": per_label,
        "sentences": len(chosen.texts),
        "priors": {
            prior.name: {"kind": prior.kind, "options": vars(prior.options), **prior.about}
            for prior in fitted
        },
        "card": card_of(run, cfg, step, "test"),
    }
    folder, stored = run.workdir, json.dumps(clean(content), indent=2, sort_keys=True)
    write_text(folder / "samples" / f"{name}.txt", _lines(goals, drawn))
    write_text(folder / "samples" / f"{name}-transfer.txt", _blocks(chosen, goal_n, moved))
    write_text(folder / "eval" / f"{name}.json", stored + "\n")
    write_text(folder / "eval" / f"{name}.txt", text + "\n")
    return text


def _labels_of(fitted: Sequence[Fitted]) -> tuple[str, ...]:
    """The labels that all priors share. Raises: ConfigError."""
    for prior in fitted:
        if not prior.labels:
            raise ConfigError(
                f"prior {prior.name!r} was fitted without labels; fit one with --mode=prior "
                f"--prior.kind={prior.kind} --prior.label"
            )
        if prior.labels != fitted[0].labels:
            raise ConfigError(
                f"priors {fitted[0].name!r} and {prior.name!r} have different labels; name those "
                "with the same labels with --prior=NAME,NAME"
            )
    return fitted[0].labels


def _labelled(run: build.Run, split: str, kind: str, labels: Sequence[str]) -> _Labelled:
    """The sentences of a split that have one of the labels. Raises: ConfigError."""
    label_n = labels_by_name(run, split, kind)
    for label in labels:
        if label not in label_n:
            raise ConfigError(f"the {split} split has no sentence with label {label!r}")
    texts, keep_n = run.data[split].texts, np.isin(label_n, labels)
    return _Labelled([str(texts[i]) for i in np.flatnonzero(keep_n).tolist()], label_n[keep_n])


def _train_latents(
    run: build.Run,
    mesh: Mesh,
    params: Params,
    like: Fitted,
    kind: str,
    labels: tuple[str, ...],
) -> _Latents:
    """The latents a prior was fitted to, with their labels."""
    about, weights = like.about, priors.weights_digest(params)
    ids = draw_sentences(len(run.data["train"]), about["sentences"], about["seed"])
    samples, seed = about["samples"], about["seed"]
    z_nkgz = split_latents(run, mesh, params, "train", samples, weights=weights, seed=seed, ids=ids)
    number_n = np.searchsorted(np.array(labels), labels_by_name(run, "train", kind)[ids])
    return _Latents(z_nkgz.reshape(-1, *run.model.latent_shape), np.repeat(number_n, samples))


def _generated(
    run: build.Run, vae: LoadedVAE, systems: Sequence[Fitted], labels: Sequence[str]
) -> dict[str, list[str]]:
    """Texts from every system for the wanted labels, which are grouped by label."""
    decode = checks.configured(run.config.decode)
    drawn = {OWN: vae.sample(len(labels), **decode)}
    for prior in systems:
        drawn[prior.name] = [
            text
            # A different seed for each label: the same noise would give pairs of similar texts.
            for place, (label, same) in enumerate(itertools.groupby(labels), vae.seed)
            for text in vae.sample(len(list(same)), place, prior=prior, label=label, **decode)
        ]
    return {system: [one_line(text) for text in texts] for system, texts in drawn.items()}


def _some(data: _Labelled, per_label: int, seed: int) -> _Labelled:
    """At most `per_label` sentences of every label, in their original order."""
    rng = np.random.default_rng(seed)
    by_label = [np.flatnonzero(data.label_n == label) for label in np.unique(data.label_n)]
    at = np.sort(np.concatenate([rng.permutation(places)[:per_label] for places in by_label]))
    return _Labelled([data.texts[i] for i in at.tolist()], data.label_n[at])


def _transferred(
    vae: LoadedVAE,
    chosen: _Labelled,
    goal_n: Sequence[str],
    fitted: Sequence[Fitted],
    train: _Latents,
    request: ControlRequest,
) -> dict[str, list[str]]:
    """Sentences moved to their target labels, by every available method."""
    z_egz, labels, goals = vae.encode(chosen.texts), fitted[0].labels, np.asarray(goal_n)
    own_n = [train.z_ngz[train.number_n == c] for c in range(len(labels))]
    mean_cgz = np.stack([z_ngz.mean(axis=0) for z_ngz in own_n])

    def by_mean(strength: float) -> np.ndarray:
        own_e, goal_e = (np.searchsorted(np.array(labels), x) for x in (chosen.label_n, goals))
        return z_egz + strength * (mean_cgz[goal_e] - mean_cgz[own_e])

    def by_prior(prior: Fitted, strength: float) -> np.ndarray:
        out_egz = z_egz.copy()
        for goal in np.unique(goals):
            at_e, current = goals == goal, chosen.label_n[goals == goal].tolist()
            out_egz[at_e] = transfer(prior, z_egz[at_e], str(goal), current, strength)
        return out_egz

    ways: dict[str, Callable[[float], np.ndarray]] = {VECTOR: by_mean}
    for prior in fitted:
        if transfers(prior):
            ways[prior.name] = lambda strength, prior=prior: by_prior(prior, strength)
    latents = {RECONSTRUCTED: z_egz}
    for system, way in ways.items():
        latents |= {f"{system} x{s:g}": way(s).astype(np.float32) for s in request.strengths}
    texts = {AS_THEY_ARE: chosen.texts}
    for system, moved_egz in latents.items():
        texts[system] = [one_line(text) for text in vae.decode(vae.placed(moved_egz))]
    return texts


def _grammatical(lines: Sequence[str]) -> float:
    return 100.0 * sum(grammar.parse(line) is not None for line in lines) / len(lines)


def _table(name: str, rows: Mapping[str, Generation | Transfer]) -> str:
    """Rows of scores, without columns that are empty in every row."""
    first = next(iter(rows.values()))
    columns = [
        field
        for field in first._fields
        if field != "accuracy_se" and any(getattr(row, field) is not None for row in rows.values())
    ]
    head = [name, *(_HEADS.get(column, column) for column in columns)]
    body = [[system, *(_cell(row, column) for column in columns)] for system, row in rows.items()]
    return "\n".join(aligned([head, *body]))


def _cell(row: Generation | Transfer, column: str) -> str:
    value = getattr(row, column)
    if column == "accuracy":
        return f"{value:.1f} ± {row.accuracy_se:.1f}"
    if column == "by_label":
        return " / ".join(f"{share:.1f}" for share in list(value.values())[:4])
    return show(value)


def _lines(labels: Sequence[str], drawn: dict[str, list[str]]) -> str:
    """Every generated text, preceded by its system and label."""
    return "".join(
        f"{system}\t{label}\t{text}\n"
        for system, texts in drawn.items()
        for label, text in zip(labels, texts, strict=True)
    )


def _blocks(chosen: _Labelled, goal_n: Sequence[str], moved: dict[str, list[str]]) -> str:
    """Every sentence with its transferred versions."""
    blocks = []
    for i, (text, label, goal) in enumerate(zip(*chosen, goal_n, strict=True)):
        rows = [f"{system}\t{texts[i]}" for system, texts in moved.items() if system != AS_THEY_ARE]
        blocks.append("\n".join([f"{label} to {goal}\t{text}", *rows, ""]))
    return "".join(f"{block}\n" for block in blocks)
