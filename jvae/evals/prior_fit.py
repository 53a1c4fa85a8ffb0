"""Fits a prior to a trained run and tabulates the change in its metrics.

The table compares the fitted prior with the run's own prior and with latents drawn from the
training posteriors. No prior can do better than the latter: the remaining error is the decoder's.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jvae.api import SPHERE, Batch, Params, TextVAE, has_latent
from jvae.data import grammar
from jvae.data.dataset import eval_batches
from jvae.errors import ConfigError
from jvae.evals import evaluation, probing
from jvae.evals import text as texts
from jvae.evals.card import aligned, clean, show
from jvae.evals.collect import mean_se
from jvae.evals.latent import PosteriorSet, collect_posteriors, latent_metrics
from jvae.evals.likelihood import draw_encoded, draw_sentences, evaluate_likelihood
from jvae.evals.split_latents import split_latents
from jvae.fields import setting
from jvae.fitted import NO_SPHERE, Fitted, attach, fit, has_density, join, no_density
from jvae.inference import checks
from jvae.inference.text_vae import LoadedVAE
from jvae.parallel import mesh as meshes
from jvae.runs import build, priors
from jvae.runs.console import Value
from jvae.runs.workdir import one_line, write_text

OWN, CEILING = "own prior", "training posteriors"
SHOWN = ("distinct_lines", "self_bleu", "memorised_pct", "bleu_test")
NATS = "nats/sentence"


@dataclasses.dataclass(frozen=True)
class PriorRequest:
    """The options of `--mode=prior`, apart from those of the kind of prior."""

    kind: str = setting("", help="Kind of the prior.")
    name: str = setting("", help="Name of the stored prior; empty: its kind.")
    samples: int = setting(4, low=1, high=10_000, help="Posterior draws of each sentence.")
    sentences: int = setting(
        0, low=0, high=2**31 - 1, help="Maximum training sentences, drawn with the seed; 0: all."
    )
    label: str = setting(
        "", help="Condition on labels: name of their kind, or true if there is only one kind."
    )


class _Labels(NamedTuple):
    names: tuple[str, ...]
    number_n: np.ndarray  # label number of each training sentence


def fit_prior(
    run: build.Run,
    mesh: Mesh,
    params: Params,
    step: int,
    request: PriorRequest,
    options: Any,
    seed: int = 0,
) -> str:
    """Fits a prior to the training split, stores it in `priors/` and returns the table.

    The table is also written to `eval/prior-<name>.txt` and `.json`.

    Raises: ConfigError for a model without a latent or with sources, or if labels are missing.
    """
    name = request.name or request.kind
    priors.check_name(name)
    if not has_latent(run.model):
        raise ConfigError(f"{run.config.name} is a language model: it has no latent to fit to")
    if run.model.post.support == SPHERE:
        raise ConfigError(NO_SPHERE)
    if "cond" in run.data["train"].sides:
        raise ConfigError(
            f"{run.config.name} reads a source text, and so does its prior; a fitted prior would "
            "not"
        )
    labels = _labels(run, request.label) if request.label else None
    train = run.data["train"]
    ids = draw_sentences(len(train), request.sentences or len(train), seed)
    weights = priors.weights_digest(params)
    z_nkgz = split_latents(
        run, mesh, params, "train", request.samples, weights=weights, seed=seed, ids=ids
    )
    z_ngz = z_nkgz.reshape(-1, *run.model.latent_shape)
    label_n = None if labels is None else np.repeat(labels.number_n[ids], request.samples)
    fitted = fit(
        request.kind,
        options,
        z_ngz,
        jax.random.key(seed),
        label_n,
        labels=() if labels is None else labels.names,
        name=name,
        mesh=mesh,
    )
    about = {
        "run": run.config.name,
        "step": step,
        "sentences": len(ids),
        "samples": request.samples,
        "seed": seed,
        "label": request.label,
    }
    fitted = dataclasses.replace(fitted, about=about)
    priors.write(run.workdir, fitted, weights)
    rows = list(_rows(run, mesh, params, fitted, z_ngz))
    return _table(run, fitted, rows)


def labels_by_name(run: build.Run, split: str, label_kind: str) -> np.ndarray:
    """The label of every sentence of a split, by name.

    Args:
      label_kind: the kind of labels, or "true" if there is only one kind.
    Raises: ConfigError if there are no labels of that kind.
    """
    labels = probing.labels_of(run, split)
    kind = next(iter(labels)) if label_kind == "true" and len(labels) == 1 else label_kind
    if kind not in labels:
        raise ConfigError(
            f"--prior.label={label_kind}: expected the name of a kind of labels: "
            f"{', '.join(labels)}"
        )
    return probing.names(kind, labels[kind]).astype(str)


def _labels(run: build.Run, label_kind: str) -> _Labels:
    """Labels of the training split by name. Raises: ConfigError."""
    names, number_n = np.unique(labels_by_name(run, "train", label_kind), return_inverse=True)
    return _Labels(tuple(names.tolist()), number_n.astype(np.int32))


class _Row(NamedTuple):
    """A metric under the run's own prior, the fitted one, and the training posteriors."""

    metric: str
    own: Value
    fitted: Value
    ceiling: Value
    unit: str
    note: str = ""
    se: float | None = None  # of own minus fitted, paired


class _Measured(NamedTuple):
    """Likelihoods and posteriors of the test split under one prior."""

    nll_e: np.ndarray
    summary: dict[str, Any]
    posts: PosteriorSet
    kl_nats: float  # KL at the draw per sentence that mutual information uses too


def _rows(
    run: build.Run, mesh: Mesh, params: Params, fitted: Fitted, z_ngz: np.ndarray
) -> Iterator[_Row]:
    """Rows for the likelihood of the test split, then for decoded samples."""
    yield from _likelihood_rows(run, mesh, params, fitted)
    yield from _sample_rows(run, params, fitted, z_ngz)


def _likelihood_rows(run: build.Run, mesh: Mesh, params: Params, fitted: Fitted) -> Iterator[_Row]:
    """NLL_K, -ELBO, KL and the marginal gap of the test split under both priors."""
    cfg, data = evaluation.settings(run.config), run.data["test"]
    sizes, key = cfg.sizes(len(data)), jax.random.key(cfg.seed)
    chosen = draw_sentences(len(data), sizes.sentences or len(data), cfg.seed)
    # More than are scored, as the mutual information cannot exceed the log of their number.
    encoded = draw_encoded(len(data), sizes.posteriors, chosen, cfg.seed)

    def rows(ids: np.ndarray | None) -> Iterator[Batch]:
        return (meshes.to_device(b, mesh) for b in eval_batches(data, run.eval_rows, ids))

    def measured(model: TextVAE, weights: Params) -> _Measured:
        result = evaluate_likelihood(
            model,
            weights,
            rows(chosen),
            key,
            sizes.samples,
            chunk=cfg.chunk,
            proposal=model.proposal,
        )
        posts = collect_posteriors(model, weights, rows(encoded), key)
        summary = result.summary()
        nll_e = np.asarray(result.scores.nll_e, np.float64)
        return _Measured(nll_e, summary, posts, float(np.mean(posts.kl_e, dtype=np.float64)))

    with meshes.inside(mesh):
        old, new = measured(run.model, params), None
        latent = latent_metrics(run.model, params, old.posts)
        if has_density(fitted):
            new = measured(attach(run.model, fitted), join(params, fitted))
    assert latent is not None and latent.marginal_gap_nats is not None  # a latent without a source
    note, se = f"no density: {no_density(fitted.kind)}", None
    if new:
        gain, se = mean_se(old.nll_e - new.nll_e)
        note = f"lower by {gain:.3f}, paired se {show(se)}"
    for name, key_of, text, error in (
        (f"nll_{sizes.samples}", "nll_nats", note, se),
        ("neg_elbo", "neg_elbo_nats", "", None),
        ("rec", "rec_nats", "", None),
    ):
        after = new.summary[key_of] if new else None
        yield _Row(name, old.summary[key_of], after, None, NATS, text, error)
    yield _Row("kl", old.kl_nats, new.kl_nats if new else None, None, NATS)
    note = "KL(q(z) || p(z)): what a perfect prior would save"
    if latent.saturated:
        note += f"; at most, as MI is near its maximum ln {latent.sentences} = "
        note += f"{latent.ceiling_nats:.2f}"
    gap = new.kl_nats - latent.mi_nats if new else None
    yield _Row("marginal_gap", latent.marginal_gap_nats, gap, None, NATS, note)


def _sample_rows(
    run: build.Run, params: Params, fitted: Fitted, z_ngz: np.ndarray
) -> Iterator[_Row]:
    """Rows for sentences decoded from draws, by sampling and greedily."""
    cfg, data = evaluation.settings(run.config), run.data["test"]
    vae, count = evaluation.text_vae_of(run, params, cfg.seed), cfg.sizes(len(data)).generate
    chosen = np.random.default_rng(cfg.seed).integers(0, len(z_ngz), count)
    drawn = {
        OWN: vae.sample_prior(count),
        fitted.name: vae.with_prior(fitted).sample_prior(count),
        CEILING: z_ngz[chosen],
    }
    decode = checks.configured(run.config.decode)
    for prefix, settings in (("", decode), ("greedy_", {"method": "greedy"})):
        lines = {system: _decoded(vae, z_egz, settings) for system, z_egz in drawn.items()}
        if "test" in run.exact:
            yield _Row(f"{prefix}grammatical", *map(_grammatical, lines.values()), unit="%")
        if not prefix:
            train = run.data["train"].texts
            metrics = [
                texts.generation(system_lines, data.texts, train) for system_lines in lines.values()
            ]
            for metric in SHOWN:
                unit = "%" if metric.endswith("_pct") else ""
                values = [row[metric] for row in metrics]
                yield _Row(metric.removesuffix("_pct"), *values, unit=unit)


def _decoded(vae: LoadedVAE, z_egz: np.ndarray, settings: dict[str, Any]) -> list[str]:
    return [one_line(text) for text in vae.decode(z_egz, **settings)]


def _grammatical(lines: Sequence[str]) -> float:
    return 100.0 * sum(grammar.parse(line) is not None for line in lines) / len(lines)


def _table(run: build.Run, fitted: Fitted, rows: Sequence[_Row]) -> str:
    """Writes the rows to files and returns them as text."""
    head = ("metric", OWN, fitted.name, CEILING, "unit", "note")
    body = [(r.metric, show(r.own), show(r.fitted), show(r.ceiling), r.unit, r.note) for r in rows]
    about = fitted.about
    title = (
        f"{run.config.name}, test: prior {fitted.name} ({fitted.kind}), fitted to "
        f"{about['samples']} draws of {about['sentences']} training sentences"
    )
    text = "\n".join([title, "", *aligned([head, *body])])
    content = {
        "title": title,
        "kind": fitted.kind,
        "options": vars(fitted.options),
        "labels": fitted.labels,
        "about": about,
        "metrics": {row.metric: row._asdict() for row in rows},
    }
    path = run.workdir / "eval" / f"prior-{fitted.name}"
    stored = json.dumps(clean(content), indent=2, sort_keys=True)
    write_text(path.with_suffix(".json"), stored + "\n")
    write_text(path.with_suffix(".txt"), text + "\n")
    return text
