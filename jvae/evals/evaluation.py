"""Evaluates a trained run: writes the table, the reporting card and text files to its directory."""

import json
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jvae import config as configs
from jvae.api import Batch, Params, TextVAE, has_latent
from jvae.data.dataset import Dataset, eval_batches
from jvae.errors import ConfigError, JvaeError
from jvae.evals import (  # noqa: F401 they register metrics
    advice,
    change_of_variables,
    compat,
    dialogue,
    extra_bounds,
    outside,
    overfitting,
)
from jvae.evals import text as texts
from jvae.evals.by_length import by_length
from jvae.evals.card import Report
from jvae.evals.collect import mean_se, to_host
from jvae.evals.cost import cost_ratio
from jvae.evals.decoded import interpolations, reconstructions, sources_of
from jvae.evals.grammar_checks import exactness
from jvae.evals.latent import PosteriorSet, collect_posteriors, latent_metrics, rec_gap
from jvae.evals.likelihood import (
    LikelihoodResult,
    TextCounts,
    draw_encoded,
    draw_sentences,
    evaluate_likelihood,
    spot_row,
)
from jvae.evals.metric import METRICS, Evaluation, wanted
from jvae.evals.references import check_bert_score
from jvae.evals.run_card import card_of
from jvae.evals.settings import EvalConfig, Preset
from jvae.evals.source_text import write_and_score
from jvae.evals.tokenization import unknown
from jvae.fitted import Fitted, attach, has_density, join, no_density
from jvae.inference import checks
from jvae.inference.text_vae import LoadedVAE
from jvae.latent.kl import per_dimension
from jvae.latent.short_run import ChainConfig
from jvae.parallel import mesh as meshes
from jvae.parallel import processes
from jvae.runs import build, loading, workdir
from jvae.runs.metrics import read_lines
from jvae.runs.workdir import one_line, write_text

log = logging.getLogger(__name__)

SAMPLER_NOTE = (
    "Fitted posterior: Rec, KL, MI are those of a Gaussian fitted to the end points of the chains; "
    "NLL_K draws from a defensive mixture, half of it the prior; active units count what two "
    "independent sets of chains agree on. Baseline: chain = prior."
)
GAP_DRAWS = 10  # draws for the baseline of Rec; variation between sentences dominates its error
NEEDS_LATENT = ("token_accuracy", "exact_match", "bleu", "interpolation_smoothness")
RATIO_DRAWS = 100  # most draws for the one batch that times the cost ratio


def text_vae_of(run: build.Run, params: Params, seed: int = 0) -> LoadedVAE:
    """Wraps a run as a text tool; with several processes, each decodes everything on its own."""
    if jax.process_count() > 1:
        params = jax.device_put(to_host(params), jax.local_devices()[0])
    return loading.text_vae(run.config, run.model, params, run.encoder, run.decoder, seed)


def settings(config: ConfigDict) -> EvalConfig:
    """The `evals` section of a config."""
    return configs.dataclass_from(EvalConfig, config.evals, "evals")


class _Subject(NamedTuple):
    """What is measured: parameters on sentences of a split."""

    run: build.Run  # its model has the fitted prior, if there is one
    own_model: TextVAE  # the model under the prior it was trained with
    mesh: Mesh
    params: Params
    config: EvalConfig
    data: Dataset  # the split
    sizes: Preset
    chosen: np.ndarray  # the sentences of `data` that are decoded and scored
    key: jax.Array

    def batches(self, ids: np.ndarray | None = None) -> Iterator[Batch]:
        """Batches of these sentences, by default of the whole split, on the devices."""
        part, parts = meshes.row_part(self.mesh, self.run.rows.batch_rows)
        batches = eval_batches(
            self.data, self.run.eval_rows, ids, process_index=part, process_count=parts
        )
        return (meshes.to_device(batch, self.mesh) for batch in batches)

    def encoded(self) -> Iterator[Batch]:
        """Batches of the sentences whose posteriors are measured, those of `chosen` included."""
        limit, seed = self.sizes.posteriors, self.config.seed
        return self.batches(draw_encoded(len(self.data), limit, self.chosen, seed))

    def few(self, n: int) -> Iterator[Batch]:
        """Batches of n sentences of the split."""
        return self.batches(draw_sentences(len(self.data), n, self.config.seed))

    def likelihood(self, batches: Iterator[Batch], draws: int) -> LikelihoodResult:
        """The importance-weighted bounds of these batches."""
        model = self.run.model
        return evaluate_likelihood(
            model,
            self.params,
            batches,
            self.key,
            draws,
            chunk=self.config.chunk,
            proposal=model.proposal,
        )


def evaluate(
    run: build.Run,
    mesh: Mesh,
    params: Params,
    step: int,
    split: str = "test",
    fitted: Fitted | None = None,
    label: str | None = None,
) -> Report:
    """Evaluates a split and writes `eval/<split>.json`, `.txt` and `.sentences.jsonl`, and
    `samples/*.txt`.

    If the preset differs from that of the run, its name is added to the file names; so is that of a
    fitted prior.

    Args:
      fitted: evaluate p'(z) p(x | z) under this prior, next to the run's own prior.
      label: condition this prior on a label.
    Raises: ConfigError for a prior without a density.
    """
    own_model = run.model
    if fitted is not None:
        if not has_density(fitted):
            raise ConfigError(
                f"prior {fitted.name!r} has no density, which the metrics of the latent need: "
                f"{no_density(fitted.kind)}"
            )
        run = run._replace(model=attach(own_model, fitted, label))
        params = join(params, fitted)
    cfg, data = settings(run.config), run.data[split]
    metric_names = wanted(cfg)  # first, so that an unknown name fails before measuring
    check_bert_score(cfg.bertscore)
    for name, file in (("features", cfg.features), ("vectors", cfg.vectors)):
        if file and not Path(file).is_file():
            raise ConfigError(f"evals.{name}={file}: no such file")
    sizes = cfg.sizes(len(data))
    chosen = draw_sentences(len(data), sizes.sentences or len(data), cfg.seed)
    key = jax.random.key(cfg.seed)
    subject = _Subject(run, own_model, mesh, params, cfg, data, sizes, chosen, key)
    under = "" if fitted is None else f", prior {fitted.name}"
    report = Report(f"{run.config.name}, {split}{under}", card_of(run, cfg, step, split))

    with timed(report, "likelihood_s"), meshes.inside(mesh):
        likelihood = subject.likelihood(subject.batches(chosen), sizes.samples)
    posts = _posteriors_and_bounds(subject, report, likelihood)
    if fitted is not None:
        with timed(report, "own_prior_s"), meshes.inside(mesh):
            _beside_own_prior(subject, report, likelihood)
        report.details["prior"] = {
            "name": fitted.name,
            "kind": fitted.kind,
            "options": vars(fitted.options),
            "label": label,
            **fitted.about,
        }
    if posts is not None:
        _checks_and_cost(subject, report, likelihood, posts)
    vae = text_vae_of(run, params, cfg.seed)
    with timed(report, "text_s"):
        samples, exact_e = _decoded(subject, report, vae)
    report.details["by_length"] = by_length(
        data.words_e, run.data["train"].words_e, likelihood, exact_e
    )
    at = Evaluation(
        run,
        params,
        cfg,
        data,
        chosen,
        lambda: subject.batches(chosen),
        key,
        likelihood,
        posts,
        vae,
        samples,
    )
    for name in metric_names:
        with timed(report, f"{name}_s"), meshes.inside(mesh):
            try:
                rows = METRICS[name](at)
            except JvaeError as error:  # what has been measured is kept
                report.notes.append(f"{name}: not measured: {error}")
                continue
            for row in rows:
                report.add(**row._asdict())
    if split in run.exact:
        exactness(run, report, likelihood, samples, split)
    report.notes += _hints(run, report, step)
    if processes.first():
        suffix = "" if cfg.preset == _own_preset(run) else f".{cfg.preset}"
        if fitted is not None:
            suffix += f".prior-{fitted.name}" + ("" if label is None else f"-{_slug(label)}")
        _write(run.workdir, report, samples, likelihood, f"{split}{suffix}", suffix)
    return report


def _posteriors_and_bounds(
    subject: _Subject, report: Report, likelihood: LikelihoodResult
) -> PosteriorSet | None:
    """Adds the rows of the likelihood and those of the latent; returns the posteriors of the split,
    None without a latent.
    """
    run, params, key = subject.run, subject.params, subject.key
    sampler = run.model.post.sampler
    posts = latent = baseline = prior = gap = None
    if has_latent(run.model):
        with timed(report, "latent_s"), meshes.inside(subject.mesh):
            posts = collect_posteriors(run.model, params, subject.encoded(), key)
            latent = latent_metrics(run.model, params, posts)
            if sampler:
                prior_model = run.model._replace(post=sampler.baseline)
                prior_posts = collect_posteriors(prior_model, params, subject.encoded(), key)
                baseline = prior = latent_metrics(prior_model, params, prior_posts)
                report.notes.append(SAMPLER_NOTE)
            else:
                own_model, fresh = subject.own_model, untrained(run, subject.mesh)
                fresh_posts = collect_posteriors(own_model, fresh, subject.encoded(), key)
                baseline = latent_metrics(own_model, fresh, fresh_posts)
            batches = subject.batches(_encoded(subject, posts))
            gap = rec_gap(run.model, params, batches, posts, likelihood, key, k=GAP_DRAWS)
    data = subject.data
    counts = TextCounts(data.words_e, data.chars_e)
    tokenizers = {"dec": run.decoder, "enc": run.encoder}
    lost = {
        side: unknown(data, side, tokenizer, subject.chosen)
        for side, tokenizer in tokenizers.items()
        if side in data.sides
    }
    report.add_likelihood(likelihood, counts, gap.rec_other_nats if gap else None, lost)
    name = "chain = prior" if sampler else "untrained model"
    report.add_latent(latent, baseline, gap, prior, name)
    return posts


def _encoded(subject: _Subject, posts: PosteriorSet) -> np.ndarray:
    """Those of the chosen sentences that have a posterior."""
    return subject.chosen[np.isin(subject.chosen, posts.id_e)]


def _checks_and_cost(
    subject: _Subject, report: Report, likelihood: LikelihoodResult, posts: PosteriorSet
) -> None:
    """Adds the token accuracy, the likelihood of a few sentences from many draws, the metrics of
    the original systems, and the cost of the likelihood in decoder passes.
    """
    cfg, sizes, sampler = subject.config, subject.sizes, subject.run.model.post.sampler
    with timed(report, "accuracy_s"), meshes.inside(subject.mesh):
        batches = subject.batches(_encoded(subject, posts))
        _accuracy(subject.run, subject.params, report, list(batches), posts)
    if sizes.spot_samples:
        with timed(report, "spot_s"), meshes.inside(subject.mesh):
            spot = subject.likelihood(subject.few(sizes.spot_sentences), sizes.spot_samples)
            report.add(**spot_row(spot, sizes.samples))
    if cfg.compat:
        with timed(report, "compat_s"), meshes.inside(subject.mesh):
            _compat(subject, report, likelihood, posts)
    with meshes.inside(subject.mesh):
        cost = cost_ratio(
            subject.run.model,
            subject.params,
            next(subject.batches(subject.chosen)),
            subject.key,
            min(sizes.samples, RATIO_DRAWS),
            chunk=cfg.chunk,
            proposal=subject.run.model.proposal,
        )
    # A sampler's chains are timed separately.
    report.time["cost_ratio"] = cost.whole - cost.encoder if sampler else cost.whole
    if sampler:
        report.time["chains_ratio"] = cost.encoder


def _compat(
    subject: _Subject, report: Report, likelihood: LikelihoodResult, posts: PosteriorSet
) -> None:
    """Adds the metrics of the original systems by their own definitions."""
    cfg, sampler = subject.config, subject.run.model.post.sampler
    volume_bound = None
    if sampler and "sri" in cfg.compat:
        volume_bound = _by_volume(subject, report, sampler.config)
    blocks = compat.blocks(
        cfg.compat,
        subject.run.model,
        subject.params,
        lambda: subject.batches(subject.chosen),
        subject.key,
        likelihood,
        posts,
        TextCounts(subject.data.words_e, subject.data.chars_e),
        {row.name: row.value for row in report.rows},
        cfg.chunk,
        volume_bound,
    )
    report.add_compat(blocks)


def _decoded(
    subject: _Subject, report: Report, vae: LoadedVAE
) -> tuple[dict[str, list[str]], np.ndarray | None]:
    """Samples, reconstructions and interpolations, whose metrics it adds.

    Returns: the texts by kind, and which sentences were reconstructed exactly.
    """
    run, cfg, data, sizes = subject.run, subject.config, subject.data, subject.sizes
    decode = checks.configured(run.config.decode)
    samples: dict[str, list[str]] = {}
    if vae.conditional:
        write_and_score(vae, data, report, samples, cfg, sizes, decode)
    else:
        samples["prior"] = [one_line(s) for s in vae.sample(sizes.generate, **decode)]
        greedy = vae.sample(sizes.generate, method="greedy")
        samples["prior_greedy"] = [one_line(s) for s in greedy]
    train = run.data["train"].texts
    report.add_group(texts.generation(samples["prior"], data.texts, train))
    if sizes.greedy_columns:
        scores = texts.generation(samples["prior_greedy"], data.texts, train)
        report.add_group(scores, prefix="greedy_")
    if not has_latent(run.model):
        for name in NEEDS_LATENT:
            report.add(name, None, "")
        return samples, None
    original = [str(data.texts[i]) for i in subject.chosen]
    sources = sources_of(data, subject.chosen) if vae.conditional else None
    z_egz, exact_e = reconstructions(run, vae, report, samples, original, sources)
    interpolations(run, vae, report, samples, z_egz, sources, cfg, sizes)
    return samples, exact_e


def _hints(run: build.Run, report: Report, step: int) -> list[str]:
    """Warnings and advice about this training."""
    curves, model = run.workdir / "metrics.jsonl", run.model
    log_lines = read_lines(curves) if curves.is_file() else []
    warning = overfitting.note(log_lines, step)
    advice_lines = advice.find(
        {row.name: row.value for row in report.rows},
        log_lines,
        texts=len(run.data["train"]),
        dropped=sum(run.data["train"].lines.dropped.values()),
        pretrained=any(run.config.init[part] for part in ("encoder", "decoder", "model")),
        ended_early=bool(log_lines) and log_lines[-1]["step"] < run.config.train.steps,
        free_bits=has_latent(model) and per_dimension(model.post, model.prior),
    )
    return [warning, *advice_lines] if warning else advice_lines


def _beside_own_prior(subject: _Subject, report: Report, likelihood: LikelihoodResult) -> None:
    """Adds rows for the same sentences and draws under the prior the model was trained with."""
    own = subject._replace(run=subject.run._replace(model=subject.own_model))
    result = own.likelihood(own.batches(own.chosen), likelihood.k)
    order, own_order = np.argsort(likelihood.id_e), np.argsort(result.id_e)
    own_e = result.scores.nll_e[own_order].astype(np.float64)
    nats, (gain, gain_se) = "nats/sentence", mean_se(own_e - likelihood.scores.nll_e[order])
    summary = result.summary()
    at = f"nll_{likelihood.k}"
    for name, value, se, definition in (
        (
            "nll_own_prior",
            summary["nll_nats"],
            summary["nll_nats_se"],
            f"{at} under the model's own prior",
        ),
        ("kl_own_prior", summary["kl_nats"], summary["kl_nats_se"], "kl to the model's own prior"),
        ("nll_gain", gain, gain_se, f"nll_own_prior less {at}, paired; above 0 the fit helps"),
    ):
        report.add(name, value, nats, se=se, definition=f"{definition} ({nats})")


def _slug(label: str) -> str:
    """A label as part of a file name."""
    return re.sub(r"[^\w-]", "_", label)


def _own_preset(run: build.Run) -> str:
    """The preset the run was trained with."""
    folder = run.workdir
    stored = workdir.saved_config(folder) if (folder / workdir.CONFIG).is_file() else run.config
    return stored.evals.preset


def _accuracy(
    run: build.Run, params: Params, report: Report, batches: list[Batch], posts: PosteriorSet
) -> None:
    """Adds the share of tokens ranked first under teacher forcing, given the posterior mean;
    the control is given that of another sentence.
    """
    value = texts.token_accuracy(run.model, params, batches, posts)
    control = texts.token_accuracy(run.model, params, batches, posts, baseline=True)
    report.add(
        "token_accuracy", value, "%", baseline=control, note="baseline: another sentence's z"
    )


def _by_volume(subject: _Subject, report: Report, chain: ChainConfig) -> LikelihoodResult:
    """The bound from the density of the short run itself, at the training temperature."""
    model, batches = subject.run.model, subject.few(compat.sri.SENTENCES)
    result = change_of_variables.evaluate(
        *(model.gen, model.prior, chain, subject.params, batches, subject.key),
        temperature=chain.temperature,
    )
    if warning := change_of_variables.alarm(result):
        report.notes.append(warning)
    return result


def untrained(run: build.Run, mesh: Mesh) -> Params:
    """The parameters at the start of training: the baseline of every latent metric."""
    _, where = build.param_shardings(run.model, mesh)
    return jax.jit(run.model.init, out_shardings=where)(build.seeds(run.config.seed)["init"])


def _write(
    folder: Path,
    report: Report,
    samples: dict[str, list[str]],
    likelihood: LikelihoodResult,
    name: str,
    suffix: str,
) -> None:
    for what, lines in samples.items():
        text = "".join(f"{line}\n" for line in lines)
        write_text(folder / "samples" / f"{what}{suffix}.txt", text)
    rows = "".join(f"{json.dumps(row)}\n" for row in likelihood.by_sentence())
    write_text(folder / "eval" / f"{name}.sentences.jsonl", rows)
    write_text(folder / "eval" / f"{name}.json", report.to_json())
    # Written last, so that an existing table implies that all its files exist.
    write_text(folder / "eval" / f"{name}.txt", report.table() + "\n")


@contextmanager
def timed(report: Report, name: str) -> Iterator[None]:
    """Records the duration of its body under `time`."""
    begin = time.monotonic()
    yield
    report.time[name] = round(time.monotonic() - begin, 2)
