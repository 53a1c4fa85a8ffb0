"""Collects the content of a report as plain values, from the run's files or from its model."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from jvae import config as configs
from jvae.api import has_latent
from jvae.data import grammar
from jvae.errors import CheckpointError, DataError, JvaeError
from jvae.evals import disentangle
from jvae.evals.card import ReportRecord, with_current_names
from jvae.evals.latent import collect_posteriors
from jvae.inference.text_vae import LoadedVAE
from jvae.latent import geometry
from jvae.runs import build, identity, loading, metrics, phases, workdir

log = logging.getLogger(__name__)

SENTENCES = 1_000  # test sentences used for maps and tables
CHAINED = 250  # likewise, if each needs Langevin chains
PAIRS, STEPS = 3, 9  # pairs to interpolate, and steps of each
TRAVERSED = 4  # number of dimensions to traverse, by largest KL
OFFSETS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)  # in standard deviations over sentences
TEMPERATURES = (0.5, 1.0, 1.5)
LISTED = 12  # samples and reconstructions to list on the page


class Traversal(NamedTuple):
    """Sentences along one dimension; `kl` is its mean KL in nats, if available."""

    dim: int
    kl: float | None
    texts: list[str]


class Factor(NamedTuple):
    """How well the dimensions encode one factor."""

    name: str
    values: int
    mig: float
    ceiling: float
    dim: int  # the most informative dimension
    share: float  # share of the factor's entropy that it explains


class Latents(NamedTuple):
    """The latents of test sentences, and results computed from them."""

    mean_egz: Float[np.ndarray, "e g z"]
    kl_gz: Float[np.ndarray, "g z"] | None  # mean over sentences, nats
    groups: str  # meaning of axis G: "layer" or "vector"
    labels: dict[str, list[str]]  # label of each sentence, by kind of label
    words: list[int]
    factors: list[Factor]
    disentangled: disentangle.Disentanglement | None
    interpolations: list[list[str]]
    traversed: str  # the sentence whose dimensions are traversed
    traversals: list[Traversal]


class Content(NamedTuple):
    """All content of a report."""

    name: str
    config: dict[str, object]  # flattened
    log: list[metrics.Line]
    phases: list[tuple[str, int]]  # name and first step, for runs with several
    evaluation: ReportRecord | None  # eval/test.json
    probes: ReportRecord | None  # eval/probe.json
    samples: dict[str, list[str]]  # files of samples/
    latents: Latents | None
    notes: list[str]
    step: int | None = None  # step of the parameters that figures and texts show
    warmth: Mapping[str, list[str]] = MappingProxyType({})  # samples by temperature


def gather(config: ConfigDict, folder: Path) -> Content:
    """Collects everything available for a run.

    Raises: CheckpointError if there is no checkpoint that fits.
    """
    notes: list[str] = []
    planned = _phases(config)
    vae = loading.load(folder)
    sampler = vae.model.post.sampler is not None
    latents = None
    if not has_latent(vae.model):
        notes.append("A language model has no latent: no maps, interpolations or traversals.")
    else:
        try:
            most = CHAINED if sampler else SENTENCES
            texts, sources, labels = sentences(config, folder, most)
            latents = _latents(vae, texts, sources, labels)
        except JvaeError as error:
            notes.append(
                f"The test sentences cannot be read, so parts that need them are missing: {error}"
            )
    files = (folder / "eval" / f"{name}.json" for name in ("test", "probe"))
    evaluation, probes = (read_report(path, notes) for path in files)
    if evaluation is None:
        notes.append(f"No evaluation: {folder}/eval/test.json is written by --mode=eval.")
    if sampler:
        notes.append(
            "Validation shows no KL, mutual information or active units: without an encoder they "
            "need extra Langevin chains, which only the evaluation runs."
        )
    path = folder / "metrics.jsonl"
    if not path.is_file():
        notes.append(f"No training curves: there is no {path}.")
    saved = identity.saved(folder)
    return Content(
        name=folder.resolve().name,
        config=configs.flatten(config),
        log=metrics.read_lines(path) if path.is_file() else [],
        phases=planned,
        evaluation=evaluation,
        probes=probes,
        samples=_samples(folder / "samples"),
        latents=latents,
        notes=notes,
        step=None if saved is None else saved.params_step,
        warmth={} if vae.conditional else _warmth(vae),
    )


def _warmth(vae: LoadedVAE) -> dict[str, list[str]]:
    """The same draws from the prior, decoded greedily and at several temperatures."""
    log.info("report: writing samples at several temperatures")
    z_egz = vae.sample_prior(LISTED)
    return {"greedy": vae.decode(z_egz)} | {
        f"T = {t:g}": vae.decode(z_egz, method="sample", temperature=t) for t in TEMPERATURES
    }


def read_report(path: Path, notes: list[str]) -> ReportRecord | None:
    """Reads a report written by `evals.card`; a damaged one is left out, with a note."""
    if not path.is_file():
        return None
    try:
        report = with_current_names(json.loads(workdir.read_text(path)))
        whole = isinstance(report["card"], dict) and isinstance(report["notes"], list)
        whole &= isinstance(report["details"], dict)
        for row in report["metrics"].values():
            numbers = (row["value"], row["se"], row["baseline"])
            whole &= all(isinstance(number, float | int | None) for number in numbers)
            whole &= isinstance(row["unit"], str) and isinstance(row["note"], str)
        if whole:
            return report
        reason = "it is not what an evaluation writes"
    except (CheckpointError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as e:
        reason = f"{type(e).__name__}: {e}"
    notes.append(f"{path} is damaged and left out ({reason}); measure again.")
    return None


def _phases(config: ConfigDict) -> list[tuple[str, int]]:
    """The phases and the step after which each begins, if patience ends none of them."""
    plan, begin, bounds = phases.resolve(config), 0, []
    for phase in plan:
        bounds.append((phase.name, begin))
        begin += phase.steps
    return bounds if len(plan) > 1 else []


def _samples(folder: Path) -> dict[str, list[str]]:
    files = sorted(folder.glob("*.txt"))
    texts = {file.stem: file.read_bytes().decode("utf-8", "replace") for file in files}
    return {name: text.rstrip("\n").split("\n") for name, text in texts.items()}


def sentences(
    config: ConfigDict, folder: Path, most: int
) -> tuple[list[str], list[str] | None, dict[str, list[str]]]:
    """Up to `most` test sentences, their sources if the model reads any, and labels by kind.

    Raises: JvaeError if the data of the run cannot be read.
    """
    if not config.data.train:
        drawn = grammar.corpus("test", most)
        labels = {
            factor.name: [factor.values[s.factors[i]] for s in drawn]
            for i, factor in enumerate(grammar.FACTORS)
        }
        return [s.text for s in drawn], None, labels
    lines = build.open_run(config, folder, identity.saved(folder)).data["test"].lines
    count = min(most, len(lines))
    parts = (lines.text, lines.source, lines.label)
    texts, sources, kinds = (
        None if part is None else [str(part[i]) for i in range(count)] for part in parts
    )
    return texts or [], sources, {} if kinds is None else {"label": kinds}


def _latents(
    vae: LoadedVAE, texts: list[str], sources: list[str] | None, labels: dict[str, list[str]]
) -> Latents:
    log.info("report: encoding %d test sentences", len(texts))

    def batches():
        for place_e, batch in vae.batches(texts, sources):
            id_e = np.full(len(batch.id_e), -1, np.int32)
            id_e[: len(place_e)] = place_e
            yield batch._replace(id_e=id_e)

    posts = collect_posteriors(vae.model, vae.params, batches(), jax.random.key(vae.seed))
    mean_egz = posts.mean_egz
    kl_gz = None if posts.kl_egz is None else posts.kl_egz.astype(np.float64).mean(axis=0)
    log.info("report: decoding interpolations and traversals")
    interpolations, traversals = _strips(vae, mean_egz, kl_gz, sources)
    factors, disentangled = _disentanglement(mean_egz, labels)
    return Latents(
        mean_egz=mean_egz,
        kl_gz=kl_gz,
        groups=vae.model.groups,
        labels=labels,
        words=[len(text.split()) for text in texts],
        factors=factors,
        disentangled=disentangled,
        interpolations=interpolations,
        traversed=texts[0],
        traversals=traversals,
    )


def _strips(
    vae: LoadedVAE,
    mean_egz: np.ndarray,
    kl_gz: np.ndarray | None,
    sources: list[str] | None,
) -> tuple[list[list[str]], list[Traversal]]:
    """Interpolations between test sentences, and traversals of single dimensions from the first
    sentence, decoded in one batch.
    """
    pairs = min(PAIRS, len(mean_egz) // 2)
    way_etgz = geometry.line(mean_egz[: 2 * pairs : 2], mean_egz[1 : 2 * pairs : 2], STEPS)
    spread_d = mean_egz.reshape(len(mean_egz), -1).std(axis=0)
    use_d = spread_d if kl_gz is None else kl_gz.ravel()
    dims = np.argsort(-use_d, kind="stable")[:TRAVERSED].tolist()
    moved = [geometry.axes(mean_egz[0], [d], np.array(OFFSETS) * spread_d[d])[0] for d in dims]
    shape = mean_egz.shape[1:]
    z_egz = np.concatenate([way_etgz.reshape(-1, *shape), *moved])
    first = [2 * i for i in range(pairs) for _ in range(STEPS)]
    conditions = None
    if sources is not None:
        conditions = [sources[i] for i in [*first, *[0] * (len(z_egz) - len(first))]]
    texts = vae.decode(vae.placed(z_egz), sources=conditions)
    ways = [texts[i * STEPS : (i + 1) * STEPS] for i in range(pairs)]
    rest = texts[pairs * STEPS :]
    size = len(OFFSETS)
    traversals = [
        Traversal(d, None if kl_gz is None else float(use_d[d]), rest[i * size : (i + 1) * size])
        for i, d in enumerate(dims)
    ]
    return ways, traversals


def _disentanglement(
    mean_egz: np.ndarray, labels: dict[str, list[str]]
) -> tuple[list[Factor], disentangle.Disentanglement | None]:
    """How dimensions relate to labels, for labels that have more than one value."""
    kinds = {name: np.unique(v, return_inverse=True) for name, v in labels.items()}
    kinds = {name: pair for name, pair in kinds.items() if 1 < len(pair[0]) < len(pair[1])}
    if len(kinds) < 2:
        return [], None
    log.info("report: disentanglement of %d factors", len(kinds))
    factor_ef = np.stack([inverse for _, inverse in kinds.values()], axis=1)
    z_ed = mean_egz.reshape(len(mean_egz), -1).astype(np.float64)
    try:
        whole = disentangle.disentanglement(z_ed, factor_ef)
    except DataError:  # too few dimensions or factors vary
        return [], None
    mi_df, entropy_f = disentangle.information(z_ed, factor_ef)
    # The ceiling given the dependence of the factors: the score with the factors as the latent.
    top_df, _ = disentangle.information(
        factor_ef.astype(np.float64), factor_ef, int(factor_ef.max()) + 1
    )
    best_f = mi_df.argmax(axis=0)
    factors = [
        Factor(
            name,
            len(values),
            disentangle.mig(mi_df[:, f : f + 1], entropy_f[f : f + 1]),
            disentangle.mig(top_df[:, f : f + 1], entropy_f[f : f + 1]),
            int(best_f[f]),
            float(mi_df[best_f[f], f] / entropy_f[f]),
        )
        for f, (name, (values, _)) in enumerate(kinds.items())
    ]
    return factors, whole
