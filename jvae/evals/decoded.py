"""Texts decoded from a trained model, and their metrics."""

import numpy as np

from jvae.data.dataset import Dataset
from jvae.evals import smoothness
from jvae.evals import text as texts
from jvae.evals.card import Report
from jvae.evals.settings import EvalConfig, Preset
from jvae.evals.tokenization import round_trip
from jvae.inference.text_vae import LoadedVAE
from jvae.latent.geometry import arc, line
from jvae.runs import build
from jvae.runs.workdir import one_line


def reconstructions(
    run: build.Run,
    vae: LoadedVAE,
    report: Report,
    samples: dict[str, list[str]],
    original: list[str],
    sources: list[str] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes sentences from their posterior means; returns the means and which texts are exact."""
    z_egz = vae.encode(original, sources)
    decoded = [one_line(s) for s in vae.decode(z_egz, sources=sources)]
    shuffled = vae.decode(np.roll(z_egz, 1, axis=0), sources=sources)
    train = run.data["train"].texts
    ceiling = round_trip(original, run.decoder)
    row = texts.reconstruction(decoded, original, train, ceiling)
    baseline = texts.reconstruction(shuffled, original, ceiling=ceiling)
    del baseline["exact_match_ceiling_pct"]  # not a property of the latent
    notes = {}
    most = row["exact_match_ceiling_pct"]
    if isinstance(most, float) and most < 100:
        notes["exact_match_pct"] = f"at most {most:.1f}, the tokenizer's ceiling"
    report.add_group(row, baseline, notes=notes)
    samples["reconstructions"] = [f"{a}\n{b}\n" for a, b in zip(original, decoded, strict=True)]
    return z_egz, np.array([a == b for a, b in zip(original, decoded, strict=True)])


def interpolations(
    run: build.Run,
    vae: LoadedVAE,
    report: Report,
    samples: dict[str, list[str]],
    z_egz: np.ndarray,
    sources: list[str] | None,
    cfg: EvalConfig,
    sizes: Preset,
) -> None:
    """Decodes lines between pairs of posterior means and measures how evenly the text changes."""
    pairs, steps = min(sizes.interpolations, len(z_egz) // 2), cfg.interpolation_steps
    if not pairs:
        return
    ends = z_egz[:pairs], z_egz[pairs : 2 * pairs]
    words = smoothness.word_vectors(run.data["train"].texts)
    ways = {"interpolation": line(*ends, steps)}
    if sizes.slerp:
        ways["arc"] = arc(*ends, steps)
    conditions = sources and [source for source in sources[:pairs] for _ in range(steps)]
    for name, z_etgz in ways.items():
        latents = vae.placed(z_etgz.reshape(-1, *z_egz.shape[1:]))
        points = [one_line(s) for s in vae.decode(latents, sources=conditions)]
        paths = [points[i * steps : (i + 1) * steps] for i in range(pairs)]
        samples[f"{name}s"] = ["\n".join(path) + "\n" for path in paths]
        for row in smoothness.smoothness_rows(words, paths, name):
            report.add(**row)
    report.card.word_vectors = smoothness.VECTORS


def sources_of(data: Dataset, ids: np.ndarray) -> list[str]:
    """Sources of some examples of a conditional model's split."""
    assert data.lines.source is not None  # always read if there is a `cond` side
    return [str(data.lines.source[i]) for i in ids]
