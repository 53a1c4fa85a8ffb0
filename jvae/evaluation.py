"""The evaluation of a trained run: table, reporting card and text files under its directory."""

import json
import logging
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jvae import config as configs
from jvae import models, run
from jvae.api import Batch, Params
from jvae.data import grammar
from jvae.data.dataset import Dataset, eval_batches
from jvae.errors import ConfigError
from jvae.evals import change_of_variables, compat, mauve, smoothness
from jvae.evals import text as texts
from jvae.evals.card import Card, Report
from jvae.evals.collect import mean_se, to_host
from jvae.evals.latent import (
    PosteriorSet,
    collect_posteriors,
    latent_metrics,
    rec_gap,
)
from jvae.evals.likelihood import (
    LikelihoodResult,
    TextCounts,
    cost_ratio,
    draw_sentences,
    evaluate_likelihood,
    excess_over_exact,
    has_latent,
    spot_row,
)
from jvae.evals.settings import EvalConfig, Preset
from jvae.latent import mixture, short_run
from jvae.parallel import mesh as meshes
from jvae.parallel import processes
from jvae.space.lines import arc, line
from jvae.space.loaded import LoadedVAE
from jvae.workdir import one_line, write_text

log = logging.getLogger(__name__)

SAMPLER_NOTE = (
    "Fitted posterior: Rec, KL, MI are those of a Gaussian fitted to the end points of the chains; "
    "NLL_K draws from its equal mixture with the prior; active units count what two independent "
    "sets of chains agree on. Control: chain = prior."
)
# A fit to R end points loses about width / R nats to its own noise.
REFINED_CHAINS, BOUND_DRAWS = 512, 20
GAP_DRAWS = 10  # draws of the control of Rec; its error is that between sentences
NEEDS_LATENT = ("token_accuracy", "exact_match", "bleu", "interpolation_smoothness")
RATIO_DRAWS = 100  # most draws of the one batch that the cost ratio is timed on


def loaded(this: run.Run, params: Params, seed: int = 0) -> LoadedVAE:
    """The text side of a run."""
    family, model_config = models.family(this.config.model.family), run.model_config(this.config)
    if jax.process_count() > 1:  # text is decoded by every process alone, all the same
        params = jax.device_put(to_host(params), jax.local_devices()[0])
    return LoadedVAE(
        model=this.model,
        params=params,
        encoder=this.encoder,
        decoder=this.decoder,
        rows=this.rows,
        limits=family.limits(model_config),
        joined=family.joined(model_config),
        max_length=this.config.decode.max_length,
        decode_batch=this.config.decode.batch,
        seed=seed,
    )


def settings(config: Any) -> EvalConfig:
    """The `evals` section of a config. Raises ConfigError where it makes no sense."""
    found = run.dataclass_from(EvalConfig, config.evals, "evals")
    compat.check(found.compat)
    return found


def evaluate(this: run.Run, mesh: Mesh, params: Params, step: int, split: str = "test") -> Report:
    """Measures a split and writes `eval/<split>.json`, `.txt` and `.sentences.jsonl`, and
    `samples/*.txt`.

    Another preset than quick adds its name to that of the files.
    """
    cfg, data = settings(this.config), this.data[split]
    sizes = cfg.sizes(len(data))
    key = jax.random.key(cfg.seed)
    chosen = draw_sentences(len(data), sizes.sentences or len(data), cfg.seed)
    report = Report(f"{this.config.name}, {split}", card_of(this, cfg, step, split))

    def rows(ids: np.ndarray | None = None) -> Iterator[Batch]:
        part, parts = meshes.row_part(mesh, this.rows.batch_rows)
        own = eval_batches(data, this.rows, ids, process_index=part, process_count=parts)
        return (meshes.to_device(b, mesh) for b in own)

    sampler = run.build_sampler(this.config, this.model)
    proposal = sampler.proposal if sampler else None
    with timed(report, "likelihood_s"), meshes.inside(mesh):
        likelihood = evaluate_likelihood(
            this.model,
            params,
            rows(chosen),
            key,
            sizes.samples,
            chunk=cfg.chunk,
            proposal=proposal,
        )
    latent = gap = control = prior = posts = None
    if has_latent(this.model):
        with timed(report, "latent_s"), meshes.inside(mesh):
            posts = collect_posteriors(this.model, params, rows(), key)
            latent = latent_metrics(this.model, params, posts)
            if sampler:
                prior_model = this.model._replace(metric_post=sampler.control)
                prior_posts = collect_posteriors(prior_model, params, rows(), key)
                control = prior = latent_metrics(prior_model, params, prior_posts)
                report.notes.append(SAMPLER_NOTE)
            else:
                fresh = untrained(this, mesh)
                fresh_posts = collect_posteriors(this.model, fresh, rows(), key)
                control = latent_metrics(this.model, fresh, fresh_posts)
            known = chosen[np.isin(chosen, posts.id_e)]
            gap = rec_gap(this.model, params, rows(known), posts, likelihood, key, k=GAP_DRAWS)
    counts = TextCounts(data.words_e, data.chars_e)
    report.add_likelihood(likelihood, counts, gap.rec_other_nats if gap else None)
    name = "chain = prior" if sampler else "untrained model"
    report.add_latent(latent, control, gap, prior, name)
    if posts is not None:
        with timed(report, "accuracy_s"):
            batches = rows(chosen[np.isin(chosen, posts.id_e)])
            _accuracy(this, params, report, list(batches), posts)
        if sizes.spot_samples:
            with timed(report, "spot_s"):
                few = draw_sentences(len(data), sizes.spot_sentences, cfg.seed)
                found = evaluate_likelihood(
                    this.model,
                    params,
                    rows(few),
                    key,
                    sizes.spot_samples,
                    chunk=cfg.chunk,
                    proposal=proposal,
                )
                report.add(**spot_row(found, sizes.samples))
        if cfg.prior_samples:
            with timed(report, "by_prior_s"):
                _by_prior(this, params, report, rows(chosen), key, likelihood, cfg)
        if cfg.refine_steps and not sampler:
            with timed(report, "refined_s"):
                _refined(this, params, report, rows(chosen), key, likelihood, cfg)
        if cfg.compat:
            with timed(report, "compat_s"):
                by_volume = None
                if sampler and "sri" in cfg.compat:
                    few = draw_sentences(len(data), compat.sri.SENTENCES, cfg.seed)
                    by_volume = _by_volume(this, sampler.chain, params, report, rows(few), key)
                report.compat = compat.blocks(
                    cfg.compat,
                    this.model,
                    params,
                    lambda: rows(chosen),
                    key,
                    likelihood,
                    posts,
                    counts,
                    {row.name: row.value for row in report.rows},
                    cfg.chunk,
                    by_volume,
                )
        cost = cost_ratio(
            this.model,
            params,
            next(rows(chosen)),
            key,
            min(sizes.samples, RATIO_DRAWS),
            chunk=cfg.chunk,
            proposal=proposal,
        )
        # The chains of a sampler are priced apart.
        report.time["cost_ratio"] = cost.whole - cost.encoder if sampler else cost.whole
        if sampler:
            report.time["chains_ratio"] = cost.encoder

    vae = loaded(this, params, cfg.seed)
    decode = {k: v for k, v in this.config.decode.items() if k not in ("batch", "max_length")}
    samples = {}
    with timed(report, "text_s"):
        n, given = sizes.generate, None
        if vae.conditional:  # one text for each of some sources
            n, given = 1, _sources(data, draw_sentences(len(data), sizes.generate, cfg.seed))
            samples["prior_sources"] = given
        samples["prior"] = [one_line(s) for s in vae.sample(n, sources=given, **decode)]
        greedy = vae.sample(n, sources=given, method="greedy")
        samples["prior_greedy"] = [one_line(s) for s in greedy]
        train = this.data["train"].texts
        report.add_group(texts.generation(samples["prior"], data.texts, train))
        _outside(report, cfg, samples["prior"], data)
        if sizes.greedy_columns:
            found = texts.generation(samples["prior_greedy"], data.texts, train)
            report.add_group(found, prefix="greedy_")
        if latent is not None:
            original = [str(data.texts[i]) for i in chosen]
            given = _sources(data, chosen) if vae.conditional else None
            z_egz = _reconstructions(this, vae, report, samples, original, given)
            _interpolations(this, vae, report, samples, z_egz, given, cfg, sizes)
        else:
            for name in NEEDS_LATENT:
                report.add(name, None, "")
    if split in this.exact:
        _exactness(this, report, likelihood, samples, split)
    if processes.first():
        suffix = "" if cfg.preset == "quick" else f".{cfg.preset}"
        _write(this.workdir, report, samples, likelihood, f"{split}{suffix}", suffix)
    return report


def _accuracy(
    this: run.Run, params: Params, report: Report, batches: list[Batch], posts: PosteriorSet
) -> None:
    """Tokens ranked first given all earlier ones and the posterior mean, or another sentence's."""
    value = texts.token_accuracy(this.model, params, batches, posts)
    other = texts.token_accuracy(this.model, params, batches, posts, other=True)
    report.add("token_accuracy", value, "%", control=other, note="control: another sentence's z")


def _by_prior(
    this: run.Run,
    params: Params,
    report: Report,
    batches: Iterator[Batch],
    key: jax.Array,
    ours: LikelihoodResult,
    cfg: EvalConfig,
) -> None:
    """The bound by draws from the prior, a check of ours: both lie above -log p(x), but this one
    reads no posterior, no KL and no density of a proposal.
    """
    found = evaluate_likelihood(
        this.model,
        params,
        batches,
        key,
        cfg.prior_samples,
        chunk=cfg.chunk,
        proposal=mixture.prior(this.model.gen),
    )
    nll_e = found.scores.nll_e[np.argsort(found.id_e)]
    above_e = nll_e - ours.scores.nll_e[np.argsort(ours.id_e)]
    unit, note = "nats/sentence", f"K = {cfg.prior_samples} draws from the prior"
    mean, se = mean_se(nll_e)
    report.add("nll_prior", mean, unit, se=se, note=note)
    mean, se = mean_se(above_e)
    note = f"paired, over nll_{ours.k}; below 0: ours is looser, or wrong"
    report.add("nll_prior_above", mean, unit, se=se, note=note)


def _refined(
    this: run.Run,
    params: Params,
    report: Report,
    batches: Iterator[Batch],
    key: jax.Array,
    amortised: LikelihoodResult,
    cfg: EvalConfig,
) -> None:
    """The bound of a Gaussian fitted to short runs from the posterior, and how much tighter
    it is, sentence by sentence.
    """
    chain = short_run.ChainConfig(
        cfg.refine_steps, "constant", cfg.refine_size, 1.0, chains=REFINED_CHAINS
    )
    post = short_run.fitted(this.model.gen, chain, start=this.model.metric_post, widen=1.0)
    refined = this.model._replace(metric_post=post)
    found = evaluate_likelihood(refined, params, batches, key, BOUND_DRAWS)
    order, known = np.argsort(found.id_e), np.argsort(amortised.id_e)
    neg_elbo_e = (found.scores.rec_e + found.scores.kl_e)[order]
    gain_e = (amortised.scores.rec_e + amortised.scores.kl_e)[known] - neg_elbo_e
    unit, note = (
        "nats/sentence",
        f"{cfg.refine_steps} steps of {cfg.refine_size:g} from the posterior",
    )
    mean, se = mean_se(neg_elbo_e)
    report.add("neg_elbo_refined", mean, unit, se=se, note=note)
    mean, se = mean_se(gain_e)
    report.add("refined_gain", mean, unit, se=se, note="paired, > 0: tighter")


def _by_volume(
    this: run.Run,
    chain: short_run.ChainConfig,
    params: Params,
    report: Report,
    batches: Iterator[Batch],
    key: jax.Array,
) -> LikelihoodResult:
    """The bound of the short run's own density, at the temperature of training."""
    found = change_of_variables.evaluate(
        this.model.gen, chain, params, batches, key, temperature=chain.temperature
    )
    if warning := change_of_variables.alarm(found):
        report.notes.append(warning)
    return found


def _outside(report: Report, cfg: EvalConfig, samples: list[str], data: Dataset) -> None:
    """What others say of the samples: features of a large model, a language model of ours."""
    if cfg.features:
        found = mauve.mauve(*mauve.read_features(Path(cfg.features)))
        note = (
            f"{found.buckets} buckets, spread over {mauve.SEEDS} seeds; {Path(cfg.features).name}"
        )
        report.add("mauve", found.value, "0-1", se=found.spread, note=note)
    if cfg.external:
        from jvae import loading  # which imports all that a run needs

        judge = loading.load(cfg.external)
        if has_latent(judge.model):
            raise ConfigError(f"evals.external={cfg.external}: has a latent; give a language model")
        texts_of = [t for t in samples if t.strip()], list(data.texts)
        ppl, control = (_ppl_per_token(judge, found) for found in texts_of)
        report.add(
            "external_ppl", ppl, "per token", control=control, note="control: test sentences"
        )


def _ppl_per_token(judge: LoadedVAE, lines: list[str]) -> float:
    nats = float(np.sum(judge.nll(lines, k=1)))
    tokens = sum(len(ids) - 1 for ids in judge.decoder.encode_batch(lines))
    return float(np.exp(nats / tokens))


def _reconstructions(
    this: run.Run,
    vae: LoadedVAE,
    report: Report,
    samples: dict[str, list[str]],
    original: list[str],
    sources: list[str] | None,
) -> np.ndarray:
    """Sentences decoded from their posterior means; returns these."""
    z_egz = vae.encode(original, sources)
    decoded = [one_line(s) for s in vae.decode(z_egz, sources=sources)]
    shuffled = vae.decode(np.roll(z_egz, 1, axis=0), sources=sources)
    train = this.data["train"].texts
    report.add_group(
        texts.reconstruction(decoded, original, train), texts.reconstruction(shuffled, original)
    )
    samples["reconstructions"] = [f"{a}\n{b}\n" for a, b in zip(original, decoded, strict=True)]
    return z_egz


def _interpolations(
    this: run.Run,
    vae: LoadedVAE,
    report: Report,
    samples: dict[str, list[str]],
    z_egz: np.ndarray,
    sources: list[str] | None,
    cfg: EvalConfig,
    sizes: Preset,
) -> None:
    """Lines between pairs of posterior means, decoded, and how evenly their sentences change."""
    pairs, steps = min(sizes.interpolations, len(z_egz) // 2), cfg.interpolation_steps
    if not pairs:
        return
    ends = z_egz[:pairs], z_egz[pairs : 2 * pairs]
    words = smoothness.word_vectors(this.data["train"].texts)
    ways = {"interpolation": line(*ends, steps)}
    if sizes.slerp:
        ways["arc"] = arc(*ends, steps)
    given = sources and [one for one in sources[:pairs] for _ in range(steps)]
    for name, z_etgz in ways.items():
        latents = z_etgz.reshape(-1, *z_egz.shape[1:])
        points = [one_line(s) for s in vae.decode(latents, sources=given)]
        paths = [points[i * steps : (i + 1) * steps] for i in range(pairs)]
        samples[f"{name}s"] = ["\n".join(path) + "\n" for path in paths]
        for row in smoothness.smoothness_rows(words, paths, name):
            report.add(**row)
    report.card.word_vectors = smoothness.VECTORS


def _sources(data: Dataset, ids: np.ndarray) -> list[str]:
    """Sources of some examples of a conditional model's split."""
    assert data.lines.source is not None  # read wherever there is a `cond` side
    return [str(data.lines.source[i]) for i in ids]


def _exactness(
    this: run.Run,
    report: Report,
    likelihood: LikelihoodResult,
    samples: dict[str, list[str]],
    split: str,
) -> None:
    """What only the embedded corpus tells: the exact -log p, and which sentences are in it."""
    exact_e = this.exact[split]
    words = this.data[split].words_e[likelihood.id_e].sum() + len(likelihood.id_e)
    exact = exact_e[likelihood.id_e]
    nats = "nats/sentence"
    report.add("exact", float(exact.mean()), nats, note="-log p of the same sentences")
    floor = float(np.exp(exact.sum() / words))
    report.add("ppl_w_floor", floor, "per word")
    at = excess_over_exact(likelihood, exact_e)
    excess = at[likelihood.k]
    report.add("excess", excess.mean_nats, nats, se=excess.se_nats, note="NLL_K - exact, paired")
    report.details["excess_nats_at"] = at
    below = [k for k, one in at.items() if one.suspicious]
    if below:
        report.notes.append(
            f"NLL_K lies below the exact value at K = {below}: the model sees its own target."
        )
    inner = [
        point for block in samples.get("interpolations", ()) for point in block.split("\n")[1:-2]
    ]
    for name, sentences in (
        ("prior", samples["prior"]),
        ("prior_greedy", samples["prior_greedy"]),
        ("interpolants", inner),
    ):
        if not sentences:
            continue
        accepted = [s for s in sentences if grammar.parse(s) is not None]
        report.add(f"{name}_grammatical", 100.0 * len(accepted) / len(sentences), "%")
        if accepted:
            share = 100.0 * len(set(accepted)) / len(accepted)
            report.add(f"{name}_distinct", share, "% of the accepted")


def untrained(this: run.Run, mesh: Mesh) -> Params:
    """Fresh parameters, those that training started from: the control of every latent metric."""
    _, where = run.param_shardings(this.model, mesh)
    return jax.jit(this.model.init, out_shardings=where)(run.seeds(this.config.seed)["init"])


def card_of(this: run.Run, evals: EvalConfig, step: int, split: str) -> Card:
    """The card of a measurement of one split."""
    cfg, data = this.config, this.data[split]
    return Card(
        commit=commit(),
        config=configs.flatten(cfg),
        weights=f"step {step}",
        data=[{"name": f.path, "sha256": f.sha256, "lines": f.lines} for f in data.lines.files],
        tokenizers={"encoder": this.encoder.fingerprint, "decoder": this.decoder.fingerprint},
        preset=evals.label,
        seen_in_train_pct=texts.seen_share(data.texts, this.data["train"].texts),
        seeds={"config": cfg.seed, "evals": evals.seed},
        dropped={"sentences": sum(data.lines.dropped.values()), "reasons": data.lines.dropped},
        special_tokens={"start": this.decoder.start_id, "end": this.decoder.end_id},
        decode=dict(cfg.decode),
        dtype=cfg.model.decoder.dtype,
    )


def commit() -> str | None:
    """The commit of the checkout that runs; None for an installed package."""
    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def _write(
    folder: Path,
    report: Report,
    samples: dict[str, list[str]],
    likelihood: LikelihoodResult,
    name: str,
    suffix: str,
) -> None:
    for what, lines in samples.items():
        text = "".join(f"{one}\n" for one in lines)
        write_text(folder / "samples" / f"{what}{suffix}.txt", text)
    rows = "".join(f"{json.dumps(row)}\n" for row in likelihood.by_sentence())
    write_text(folder / "eval" / f"{name}.sentences.jsonl", rows)
    write_text(folder / "eval" / f"{name}.json", report.to_json())
    # Last: the table tells that the run is finished.
    write_text(folder / "eval" / f"{name}.txt", report.table() + "\n")


@contextmanager
def timed(report: Report, name: str) -> Iterator[None]:
    """Notes under `time` how long its body took."""
    begin = time.monotonic()
    yield
    report.time[name] = round(time.monotonic() - begin, 2)
