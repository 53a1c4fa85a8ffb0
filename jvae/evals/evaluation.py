"""Evaluates a trained run: writes the table, the reporting card and text files to its directory."""

import json
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jvae import config as configs
from jvae.api import Batch, Params, TextVAE, has_latent
from jvae.data.dataset import eval_batches
from jvae.errors import ConfigError
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
    draw_sentences,
    evaluate_likelihood,
    spot_row,
)
from jvae.evals.metric import METRICS, Evaluation, wanted
from jvae.evals.references import check_bert_score
from jvae.evals.run_card import card_of
from jvae.evals.settings import EvalConfig
from jvae.evals.source_text import write_and_score
from jvae.evals.tokenization import unknown
from jvae.fitted import Fitted, attach, has_density, join, no_density
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
    model = run.model
    if fitted is not None:
        if not has_density(fitted):
            raise ConfigError(
                f"prior {fitted.name!r} has no density, which the metrics of the latent need: "
                f"{no_density(fitted.kind)}"
            )
        run = run._replace(model=attach(model, fitted, label))
        params = join(params, fitted)
    cfg, data = settings(run.config), run.data[split]
    metric_names = wanted(cfg)  # first, so that an unknown name fails before measuring
    check_bert_score(cfg.bertscore)
    sizes = cfg.sizes(len(data))
    key = jax.random.key(cfg.seed)
    chosen = draw_sentences(len(data), sizes.sentences or len(data), cfg.seed)
    under = "" if fitted is None else f", prior {fitted.name}"
    report = Report(f"{run.config.name}, {split}{under}", card_of(run, cfg, step, split))

    def rows(ids: np.ndarray | None = None) -> Iterator[Batch]:
        part, parts = meshes.row_part(mesh, run.rows.batch_rows)
        batches = eval_batches(data, run.rows, ids, process_index=part, process_count=parts)
        return (meshes.to_device(b, mesh) for b in batches)

    sampler, proposal = run.model.post.sampler, run.model.proposal
    with timed(report, "likelihood_s"), meshes.inside(mesh):
        likelihood = evaluate_likelihood(
            run.model,
            params,
            rows(chosen),
            key,
            sizes.samples,
            chunk=cfg.chunk,
            proposal=proposal,
        )
    latent = gap = baseline = prior = posts = None
    if has_latent(run.model):
        with timed(report, "latent_s"), meshes.inside(mesh):
            posts = collect_posteriors(run.model, params, rows(), key)
            latent = latent_metrics(run.model, params, posts)
            if sampler:
                prior_model = run.model._replace(post=sampler.baseline)
                prior_posts = collect_posteriors(prior_model, params, rows(), key)
                baseline = prior = latent_metrics(prior_model, params, prior_posts)
                report.notes.append(SAMPLER_NOTE)
            else:
                fresh = untrained(run, mesh)
                fresh_posts = collect_posteriors(model, fresh, rows(), key)
                baseline = latent_metrics(model, fresh, fresh_posts)
            ids = chosen[np.isin(chosen, posts.id_e)]
            gap = rec_gap(run.model, params, rows(ids), posts, likelihood, key, k=GAP_DRAWS)
    counts = TextCounts(data.words_e, data.chars_e)
    tokenizers = {"dec": run.decoder, "enc": run.encoder}
    lost = {s: unknown(data, s, t, chosen) for s, t in tokenizers.items() if s in data.sides}
    report.add_likelihood(likelihood, counts, gap.rec_other_nats if gap else None, lost)
    name = "chain = prior" if sampler else "untrained model"
    report.add_latent(latent, baseline, gap, prior, name)
    if fitted is not None:
        with timed(report, "own_prior_s"), meshes.inside(mesh):
            _beside_own_prior(model, params, report, rows(chosen), key, cfg, likelihood)
        report.details["prior"] = {
            "name": fitted.name,
            "kind": fitted.kind,
            "options": vars(fitted.options),
            "label": label,
            **fitted.about,
        }
    if posts is not None:
        with timed(report, "accuracy_s"), meshes.inside(mesh):
            batches = rows(chosen[np.isin(chosen, posts.id_e)])
            _accuracy(run, params, report, list(batches), posts)
        if sizes.spot_samples:
            with timed(report, "spot_s"), meshes.inside(mesh):
                few = draw_sentences(len(data), sizes.spot_sentences, cfg.seed)
                spot = evaluate_likelihood(
                    run.model,
                    params,
                    rows(few),
                    key,
                    sizes.spot_samples,
                    chunk=cfg.chunk,
                    proposal=proposal,
                )
                report.add(**spot_row(spot, sizes.samples))
        if cfg.compat:
            with timed(report, "compat_s"), meshes.inside(mesh):
                volume_bound = None
                if sampler and "sri" in cfg.compat:
                    few = draw_sentences(len(data), compat.sri.SENTENCES, cfg.seed)
                    volume_bound = _by_volume(run, sampler.config, params, report, rows(few), key)
                blocks = compat.blocks(
                    cfg.compat,
                    run.model,
                    params,
                    lambda: rows(chosen),
                    key,
                    likelihood,
                    posts,
                    counts,
                    {row.name: row.value for row in report.rows},
                    cfg.chunk,
                    volume_bound,
                )
                report.add_compat(blocks)
        with meshes.inside(mesh):
            cost = cost_ratio(
                run.model,
                params,
                next(rows(chosen)),
                key,
                min(sizes.samples, RATIO_DRAWS),
                chunk=cfg.chunk,
                proposal=proposal,
            )
        # A sampler's chains are timed separately.
        report.time["cost_ratio"] = cost.whole - cost.encoder if sampler else cost.whole
        if sampler:
            report.time["chains_ratio"] = cost.encoder

    vae = text_vae_of(run, params, cfg.seed)
    decode = {k: v for k, v in run.config.decode.items() if k not in ("batch", "max_length")}
    samples, exact_e = {}, None
    with timed(report, "text_s"):
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
        if latent is not None:
            original = [str(data.texts[i]) for i in chosen]
            sources = sources_of(data, chosen) if vae.conditional else None
            z_egz, exact_e = reconstructions(run, vae, report, samples, original, sources)
            interpolations(run, vae, report, samples, z_egz, sources, cfg, sizes)
        else:
            for name in NEEDS_LATENT:
                report.add(name, None, "")
    report.details["by_length"] = by_length(
        data.words_e, run.data["train"].words_e, likelihood, exact_e
    )
    at = Evaluation(
        run,
        params,
        cfg,
        data,
        chosen,
        lambda: rows(chosen),
        key,
        likelihood,
        posts,
        vae,
        samples,
    )
    for name in metric_names:
        with timed(report, f"{name}_s"), meshes.inside(mesh):
            for row in METRICS[name](at):
                report.add(**row._asdict())
    if split in run.exact:
        exactness(run, report, likelihood, samples, split)
    curves = run.workdir / "metrics.jsonl"
    log_lines = read_lines(curves) if curves.is_file() else []
    if warning := overfitting.note(log_lines, step):
        report.notes.append(warning)
    report.notes += advice.find(
        {row.name: row.value for row in report.rows},
        log_lines,
        texts=len(run.data["train"]),
        dropped=sum(run.data["train"].lines.dropped.values()),
        pretrained=any(run.config.init[part] for part in ("encoder", "decoder", "model")),
        ended_early=bool(log_lines) and log_lines[-1]["step"] < run.config.train.steps,
        free_bits=has_latent(model) and per_dimension(model.post, model.prior),
    )
    if processes.first():
        suffix = "" if cfg.preset == _own_preset(run) else f".{cfg.preset}"
        if fitted is not None:
            suffix += f".prior-{fitted.name}" + ("" if label is None else f"-{_slug(label)}")
        _write(run.workdir, report, samples, likelihood, f"{split}{suffix}", suffix)
    return report


def _beside_own_prior(
    model: TextVAE,
    params: Params,
    report: Report,
    batches: Iterator[Batch],
    key: jax.Array,
    cfg: EvalConfig,
    likelihood: LikelihoodResult,
) -> None:
    """Adds rows for the same sentences and draws under the prior the model was trained with."""
    result = evaluate_likelihood(
        model, params, batches, key, likelihood.k, chunk=cfg.chunk, proposal=model.proposal
    )
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


def _by_volume(
    run: build.Run,
    chain: ChainConfig,
    params: Params,
    report: Report,
    batches: Iterator[Batch],
    key: jax.Array,
) -> LikelihoodResult:
    """The bound from the density of the short run itself, at the training temperature."""
    model = run.model
    result = change_of_variables.evaluate(
        model.gen, model.prior, chain, params, batches, key, temperature=chain.temperature
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
