"""Generation and transfer by label on short Yelp, with published results."""

from collections.abc import Mapping, Sequence
from typing import Any

from jvae.bench.speed import NOT_MEASURED

Row = Mapping[str, Any]
Scores = Mapping[str, Any]

# Accuracy, BLEU, G and self-BLEU in %, short Yelp. Source: Li et al. 2020, arXiv 2004.04092, the
# table of label-conditional generation.
PUBLISHED = {
    "Optimus": (99.8, 39.8, 63.0, 24.3),
    "Control-Gen": (87.8, 38.9, 58.4, 41.2),
    "ARAE": (96.7, 20.1, 44.2, 25.8),
    "NN-Outlines": (55.3, 19.8, 33.1, 34.7),
}
DIFFERENCES = """\
Published figures come from other models and measures, so they compare only with each other. Optimus
there is BERT-base and GPT-2, pretrained on Wikipedia and fine-tuned on 444,000 sentences; the
oracle is another classifier; BLEU and self-BLEU come from another implementation. Published results
of AdaVAE on this task could not be read."""
GENERATION = ("bleu", "g", "self_bleu", "dist_2", "ppl")
TRANSFER = ("source_bleu", "g", "exact")
BASELINES = ("test sentences", "own prior", "as they are", "reconstructed", "shuffled labels")
TITLES = {
    "bleu": "BLEU test",
    "g": "G",
    "self_bleu": "self-BLEU",
    "dist_2": "dist-2",
    "ppl": "ppl",
    "source_bleu": "BLEU source",
    "exact": "unchanged %",
}


def table(rows: Sequence[Row]) -> str:
    """Markdown of generation and of transfer; `rows` has one row, or none."""
    if not rows:
        return f"{NOT_MEASURED[0].upper()}{NOT_MEASURED[1:]}."
    row = rows[0]
    generation = _lines("generation", row["generation"], GENERATION)
    for name, values in PUBLISHED.items():
        cells = [f"{value:.1f}" for value in values] + ["–", "–"]
        generation.append(f"| {name}, published | {' | '.join(cells)} |")
    transfer = _lines("transfer", row["transfer"], TRANSFER)
    oracle = row["oracle"]
    notes = [
        f"- {row['hardware']}, jax {row['jax']}, commit {row['commit']}; {row['steps']:,} updates.",
        f"- The oracle is right on {oracle['mean']:.1f} % of the test sentences. {row['each']} "
        f"texts were generated for each label, and {row['sentences']} sentences transferred.",
        f"- {' '.join(DIFFERENCES.split())}",
    ]
    return "\n".join([*generation, "", *transfer, "", *notes])


def _lines(title: str, systems: Mapping[str, Scores], columns: Sequence[str]) -> list[str]:
    head = [title, "accuracy %", *(TITLES[column] for column in columns)]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    first = [name for name in BASELINES if name in systems]
    for system in [*first, *(name for name in systems if name not in first)]:
        scores = systems[system]
        accuracy = f"{scores['accuracy']:.1f} ± {scores['accuracy_se']:.1f}"
        cells = [_cell(scores[column], 3 if column == "dist_2" else 1) for column in columns]
        lines.append(f"| {system} | {accuracy} | {' | '.join(cells)} |")
    return lines


def _cell(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
