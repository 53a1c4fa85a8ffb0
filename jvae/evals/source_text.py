"""Evaluates the texts that a source -> text model writes for a split: scores against the references
of each source, and how much of the text the latent determines.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jvae.data.dataset import Dataset
from jvae.evals import references
from jvae.evals.card import Report
from jvae.evals.likelihood import draw_sentences
from jvae.evals.references import IGNORED_SHARE, Group, Score
from jvae.evals.settings import EvalConfig, Preset
from jvae.inference.text_vae import LoadedVAE
from jvae.runs.workdir import one_line

_UNITS = {"bleu": "0-100", "rouge": "0-100", "bertscore": "0-100", "self": "0-100", "dist": "0-1"}
_UNITS |= {"jaccard": "0-1", "distinct": "texts"}


def groups_of(data: Dataset) -> list[Group]:
    """The sources of a split, each with its references."""
    assert data.lines.source is not None  # always read if there is a `cond` side
    return references.groups(map(str, data.lines.source), map(str, data.lines.text))


def write_and_score(
    vae: LoadedVAE,
    data: Dataset,
    report: Report,
    samples: dict[str, list[str]],
    cfg: EvalConfig,
    sizes: Preset,
    decode: Mapping[str, Any],
) -> None:
    """Writes `evals.outputs` texts for each of some sources and adds their rows. The total number
    of texts is the preset's `generate`.

    The baseline of scores against references compares the same texts with those of another source;
    the baseline of the latent's diversity is the same number of random decodings of one latent.

    Args:
      samples: receives `prior_sources`, `prior` and `prior_greedy` (the first text of each source),
        `outputs` (all texts, source by source) and `outputs_by_source` (the same, formatted).
      decode: decoding settings of the texts that are scored.
    """
    groups = groups_of(data)
    count = min(cfg.outputs, sizes.generate)
    chosen = draw_sentences(len(groups), max(1, sizes.generate // count), cfg.seed)
    picked = [groups[i] for i in chosen]
    sources = [group.source for group in picked]
    refs = [group.references for group in picked]
    repeated = [source for source in sources for _ in range(count)]

    def written(z_egz: np.ndarray, **settings: Any) -> list[list[str]]:
        texts = vae.decode(z_egz, sources=repeated, **settings)
        return references.by_source([one_line(text) for text in texts], count)

    z_egz = vae.sample_prior(count, sources=sources)
    texts = written(z_egz, **({"method": "sample"} | dict(decode)))
    greedy = written(z_egz, method="greedy")
    samples["prior_sources"] = sources
    samples["prior"], samples["prior_greedy"] = (
        [group[0] for group in outputs] for outputs in (texts, greedy)
    )
    samples["outputs"] = [text for group in texts for text in group]
    samples["outputs_by_source"] = [_block(*pair) for pair in zip(picked, texts, strict=True)]
    _add_scores(report, texts, refs, cfg.bertscore)
    if count < 2:
        report.notes.append("One text per source (evals.outputs=1): their diversity is left out.")
        return
    _add(report, "source", references.diversity(texts), note=f"{count} texts of each source")
    if z_egz.size:
        first_egz = np.repeat(z_egz[::count], count, axis=0)
        _add_latent(report, greedy, written(first_egz, method="sample"))


def _block(group: Group, texts: list[str]) -> str:
    lines = [
        group.source,
        *(f"= {reference}" for reference in group.references),
        *(f"- {text}" for text in texts),
    ]
    return "\n".join(lines) + "\n"


def _add_scores(
    report: Report, texts: list[list[str]], refs: list[list[str]], bertscore: str
) -> None:
    shifted = refs[1:] + refs[:1]
    scores, baseline = references.fidelity(texts, refs), references.fidelity(texts, shifted)
    if bertscore:
        scores |= references.bert_score(texts, refs, bertscore)
        baseline |= references.bert_score(texts, shifted, bertscore)
    else:
        report.notes.append("BERTScore is left out: evals.bertscore names no model.")
    if len(refs) < 2:
        baseline = {}
    few, most = min(map(len, refs)), max(map(len, refs))
    number = "one reference" if most == 1 else f"{few} to {most} references"
    number = f"{most} references" if few == most > 1 else number
    note = f"{len(refs)} sources, {number}, {len(texts[0])} texts each"
    _add(report, "reference", scores, baseline, note)


def _add_latent(report: Report, latents: list[list[str]], draws: list[list[str]]) -> None:
    """Adds the diversity of greedy texts over latents, with random decodings of one as baseline."""
    by_latent, by_draw = references.diversity(latents), references.diversity(draws)
    count = len(latents[0])
    note = f"greedy, {count} latents of each source; baseline: {count} random texts of one latent"
    _add(report, "latent", by_latent, by_draw, note)
    share = references.latent_share(by_latent, by_draw)
    ignored = share is not None and share < IGNORED_SHARE
    report.add("latent_share", share, "of random decoding")
    report.add("latent_ignored", ignored, "", shown="yes" if ignored else "no")
    if ignored:
        report.notes.append(
            f"The model ignores its latent: under greedy decoding {count} latents change its texts "
            f"by {share:.1%} of what random decoding changes, less than {IGNORED_SHARE:.0%}."
        )


def _add(
    report: Report,
    group: str,
    scores: Mapping[str, Score],
    baseline: Mapping[str, Score] | None = None,
    note: str = "",
) -> None:
    """Adds the rows of one group; the first row carries the note."""
    for name, score in scores.items():
        control_score = (baseline or {}).get(name)
        unit = _UNITS[name.split("_")[0]]
        mean = control_score and control_score.mean
        report.add(f"{group}_{name}", score.mean, unit, se=score.se, baseline=mean, note=note)
        note = ""
