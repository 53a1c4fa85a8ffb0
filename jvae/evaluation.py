"""The evaluation of a trained run: table, reporting card and text files under its directory."""

import logging
import subprocess
import time
from collections.abc import Iterator, Sequence
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
from jvae.evals import text as texts
from jvae.evals.card import Card, Report
from jvae.evals.latent import (
    LatentResult,
    collect_posteriors,
    latent_metrics,
    rec_gap,
)
from jvae.evals.likelihood import (
    TextCounts,
    draw_sentences,
    evaluate_likelihood,
    excess_over_exact,
    has_latent,
)
from jvae.parallel import mesh as meshes
from jvae.space.loaded import LoadedVAE, line
from jvae.workdir import one_line, write_text

log = logging.getLogger(__name__)

SAMPLER_NOTE = (
    "Fitted posterior: Rec, KL, MI are those of a Gaussian fitted to the end points of the chains; "
    "NLL_K draws from its equal mixture with the prior; active units count what two independent "
    "sets of chains agree on. Control: chain = prior."
)
GAP_DRAWS = 10  # draws of the control of Rec; its error is that between sentences


def loaded(this: run.Run, params: Params, seed: int = 0) -> LoadedVAE:
    """The text side of a run."""
    family, model_config = models.family(this.config.model.family), run.model_config(this.config)
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


def evaluate(this: run.Run, mesh: Mesh, params: Params, step: int, split: str = "test") -> Report:
    """Measures a split and writes `eval/<split>.json`, `eval/<split>.txt` and `samples/*.txt`."""
    cfg, data = this.config.evals, this.data[split]
    key = jax.random.key(cfg.seed)
    chosen = draw_sentences(len(data), cfg.sentences, cfg.seed)
    report = Report(f"{this.config.name}, {split}", _card(this, step, split))

    def rows(ids: np.ndarray | None = None) -> Iterator[Batch]:
        sharding = meshes.batch_sharding(mesh)
        return (jax.device_put(b, sharding) for b in eval_batches(data, this.rows, ids))

    sampler = run.build_sampler(this.config, this.model)
    with _timed(report, "likelihood_s"):
        likelihood = evaluate_likelihood(
            this.model,
            params,
            rows(chosen),
            key,
            cfg.samples,
            chunk=cfg.chunk,
            proposal=sampler.proposal if sampler else None,
        )
    latent = gap = control = prior = None
    if has_latent(this.model):
        with _timed(report, "latent_s"):
            posts = collect_posteriors(this.model, params, rows(), key)
            latent = latent_metrics(this.model, params, posts)
            if sampler:
                prior_model = this.model._replace(metric_post=sampler.control)
                prior_posts = collect_posteriors(prior_model, params, rows(), key)
                control = prior = latent_metrics(prior_model, params, prior_posts)
                report.notes.append(SAMPLER_NOTE)
            else:
                control = _untrained(this, mesh, rows)
            gap = rec_gap(this.model, params, rows(chosen), posts, likelihood, key, k=GAP_DRAWS)
    counts = TextCounts(data.words_e, data.chars_e)
    report.add_likelihood(likelihood, counts, gap.rec_other_nats if gap else None)
    name = "chain = prior" if sampler else "untrained model"
    report.add_latent(latent, control, gap, prior, name)

    vae = loaded(this, params, cfg.seed)
    settings = {k: v for k, v in this.config.decode.items() if k not in ("batch", "max_length")}
    samples = {}
    with _timed(report, "text_s"):
        n, given = cfg.generate, None
        if vae.conditional:  # one text for each of some sources
            n, given = 1, _sources(data, draw_sentences(len(data), cfg.generate, cfg.seed))
            samples["prior_sources"] = given
        samples["prior"] = [one_line(s) for s in vae.sample(n, sources=given, **settings)]
        greedy = vae.sample(n, sources=given, method="greedy")
        samples["prior_greedy"] = [one_line(s) for s in greedy]
        report.add_group(texts.generation(samples["prior"], data.texts, this.data["train"].texts))
        if latent is not None:
            original = [str(data.texts[i]) for i in chosen]
            given = _sources(data, chosen) if vae.conditional else None
            _reconstructions(this, vae, report, samples, original, given)
    if split in this.exact:
        _exactness(this, report, likelihood, samples, split)
    _write(this.workdir, report, samples, split)
    return report


def _reconstructions(
    this: run.Run,
    vae: LoadedVAE,
    report: Report,
    samples: dict[str, list[str]],
    original: list[str],
    sources: list[str] | None,
) -> None:
    """Sentences decoded from their posterior means, and lines between pairs of them."""
    cfg = this.config.evals
    z_egz = vae.encode(original, sources)
    decoded = [one_line(s) for s in vae.decode(z_egz, sources=sources)]
    shuffled = vae.decode(np.roll(z_egz, 1, axis=0), sources=sources)
    train = this.data["train"].texts
    report.add_group(
        texts.reconstruction(decoded, original, train), texts.reconstruction(shuffled, original)
    )
    samples["reconstructions"] = [f"{a}\n{b}\n" for a, b in zip(original, decoded, strict=True)]
    pairs = min(cfg.interpolations, len(original) // 2)
    if pairs:
        z_etgz = line(z_egz[:pairs], z_egz[pairs : 2 * pairs], cfg.interpolation_steps)
        steps = cfg.interpolation_steps
        given = sources and [one for one in sources[:pairs] for _ in range(steps)]
        latents = z_etgz.reshape(-1, *z_egz.shape[1:])
        points = [one_line(s) for s in vae.decode(latents, sources=given)]
        samples["interpolations"] = [
            "\n".join(points[i * steps : (i + 1) * steps]) + "\n" for i in range(pairs)
        ]


def _sources(data: Dataset, ids: np.ndarray) -> list[str]:
    """Sources of some examples of a conditional model's split."""
    assert data.lines.source is not None  # read wherever there is a `cond` side
    return [str(data.lines.source[i]) for i in ids]


def _exactness(
    this: run.Run,
    report: Report,
    likelihood: Any,
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
    excess = excess_over_exact(likelihood, exact_e)[likelihood.k]
    report.add("excess", excess.mean_nats, nats, se=excess.se_nats, note="NLL_K - exact, paired")
    if excess.suspicious:
        report.notes.append("NLL_K lies below the exact value: the model sees its own target.")
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


def _untrained(this: run.Run, mesh: Mesh, rows: Any) -> LatentResult | None:
    """The control of every latent metric: the same estimators on fresh parameters."""
    _, where = run.param_shardings(this.model, mesh)
    params = jax.jit(this.model.init, out_shardings=where)(run.seeds(this.config.seed)["init"])
    posts = collect_posteriors(this.model, params, rows(), jax.random.key(this.config.evals.seed))
    return latent_metrics(this.model, params, posts)


def _card(this: run.Run, step: int, split: str) -> Card:
    cfg, data = this.config, this.data[split]
    return Card(
        commit=_commit(),
        config=configs.flatten(cfg),
        weights=f"step {step}",
        data=[{"name": f.path, "sha256": f.sha256, "lines": f.lines} for f in data.lines.files],
        tokenizers={"encoder": this.encoder.fingerprint, "decoder": this.decoder.fingerprint},
        preset="quick",
        seen_in_train_pct=texts.seen_share(data.texts, this.data["train"].texts),
        seeds={"config": cfg.seed, "evals": cfg.evals.seed},
        dropped={"sentences": sum(data.lines.dropped.values()), "reasons": data.lines.dropped},
        special_tokens={"start": this.decoder.start_id, "end": this.decoder.end_id},
        decode=dict(cfg.decode),
        dtype=cfg.model.decoder.dtype,
    )


def _commit() -> str | None:
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


def _write(folder: Path, report: Report, samples: dict[str, Sequence[str]], split: str) -> None:
    write_text(folder / "eval" / f"{split}.json", report.to_json())
    write_text(folder / "eval" / f"{split}.txt", report.table() + "\n")
    for name, lines in samples.items():
        write_text(folder / "samples" / f"{name}.txt", "".join(f"{one}\n" for one in lines))


@contextmanager
def _timed(report: Report, name: str) -> Iterator[None]:
    begin = time.monotonic()
    yield
    report.time[name] = round(time.monotonic() - begin, 2)
