"""The table of the five papers' experiments: the command of each, our result next to the published
one, and whether the two are comparable.

    python -m jvae.experiments.results task O5 runs/fusion           adds the result of a run
    python -m jvae.experiments.results task O2/memory runs/memory    ... of one of several parts
    python -m jvae.experiments.results write

An experiment without a stored result states the reason.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jvae.errors import ConfigError

Row = Mapping[str, Any]
OURS = "D"  # a folder of data sets, in commands
SMALL = "a small model from scratch and another share of the data"
WEIGHTS = "its pretrained weights and this data are not part of the project"
TUNED = "published models are pretrained and ten to a hundred times as large"


BASELINE = "baseline of "  # before a metric's name: its value for the untrained model


class Experiment(NamedTuple):
    """One row.

    command: arguments of `python -m`, with a small budget if there is one.
    compares: how the results compare, or why they do not.
    metrics: metrics of the stored report: name, title, digits. report: `eval/<report>.json`.
    parts: name and report of every part of an experiment of several runs or tasks.
    averaged: the parts are the same run with several seeds: show their mean.
    comparison: (entry, data) of the comparison of all models; its row for budget `cpu-short`
      and the first seed is shown if no run of the experiment's own is stored.
    reason: why nothing is measured.
    """

    key: str
    what: str
    command: str
    data: str
    published: str
    compares: str
    metrics: tuple[tuple[str, str, int], ...] = ()
    report: str = "test"
    parts: tuple[tuple[str, str], ...] = ()
    averaged: bool = False
    comparison: tuple[str, str] | None = None
    reason: str = ""


BOUND = (("nll_{k}", "NLL_{k}", 2), ("ppl_w", "PPL_w", 1), ("kl", "KL", 2), ("mi", "MI", 2))
TEXTS = (
    ("reference_bleu", "BLEU", 1),
    ("reference_bleu_best", "best of ten", 1),
    ("reference_rouge_l", "ROUGE-L", 1),
    ("source_self_bleu", "self-BLEU", 1),
    ("latent_share", "latent share", 2),
)
DIALOGUE = (
    ("dialogue_bleu_recall", "R", 3),
    ("dialogue_bleu_precision", "P", 3),
    ("dialogue_bleu_f1", "F1", 3),
    (f"{BASELINE}dialogue_bleu_f1", "F1 with the references of another context", 3),
    ("dialogue_intra_dist_1", "intra-dist-1", 3),
    ("dialogue_length", "words", 1),
    ("latent_share", "latent share", 2),
)
ACCURACY = (
    ("nlu_accuracy", "accuracy %", 1),
    (f"{BASELINE}nlu_accuracy", "untrained encoder", 1),
)
ABLATIONS = ("full", "no_product", "independent", "shared", "lower", "upper")  # of DELLA
SRI_SIZES = (100, 500, 1_000, 2_000)
SEEDS = ("seed 0", "seed 1", "seed 2")
FEW_LABELS = "short Yelp after `tasks:few_labels` with `--sweep=seed=0,1,2`"
CONTROL = "control-gaussian-flow-diffusion-gan-ctrl_gen"  # of `jvae.experiments.labels`


def _by_label(prior: str) -> tuple[tuple[str, str, int], ...]:
    """Metrics of texts that a prior generates by label."""
    return (
        (f"{prior}.accuracy", "accuracy %", 1),
        (f"{prior}.bleu", "BLEU", 1),
        (f"{prior}.g", "G", 1),
        (f"{prior}.self_bleu", "self-BLEU", 1),
        ("shuffled labels.accuracy", "accuracy % with permuted labels", 1),
    )


MAIN, COMPARE = "jvae.main --config=", "jvae.experiments.comparison --data=snli=D/snli"
LANGUAGE = f"no: {SMALL}; PPL is per word here, per BPE token there"
FREE = "–: only plots and sentences were published, no figures"

EXPERIMENTS = (
    Experiment(
        "O1",
        "Optimus, language modelling",
        f"{COMPARE} --budget=cpu-short",
        "SNLI",
        "PPL 16.67, MI 8.89, -ELBO 38.50 (λ = .5)",
        LANGUAGE,
        BOUND,
        comparison=("optimus", "snli"),
    ),
    Experiment(
        "O2",
        "Optimus, ways to inject z",
        f"{MAIN}optimus:tiny,inject=memory (embedding, both, softmax)",
        "embedded corpus",
        "memory ahead of embedding, both best (curves)",
        "only the order",
        (("rec", "Rec", 2), ("kl", "KL", 2), ("exact_match", "exact match %", 1)),
        parts=tuple((way, "test") for way in ("both", "memory", "embedding", "softmax")),
    ),
    Experiment(
        "O3",
        "Optimus, reconstruction, interpolation, analogy",
        f"{MAIN}optimus:latent768 ...; --mode=interpolate, analogy",
        "SNLI",
        FREE,
        "–",
        reason=f"{WEIGHTS}; the tables above have exact match and smoothness of small models",
    ),
    Experiment(
        "O4",
        "Optimus, samples of the prior",
        f"{COMPARE} --budget=cpu-short --models=optimus",
        "SNLI",
        "no figure found; the paper was only read in part",
        "–",
        (("bleu_test_5", "BLEU-5", 1), ("self_bleu_5", "self-BLEU-5", 1)),
        comparison=("optimus", "snli"),
    ),
    Experiment(
        "O5",
        "Optimus, dialogue responses (SpaceFusion)",
        f"{MAIN}tasks:fusion,data=D/dailydialog_pp",
        "DailyDialog++, 7,608 contexts, five references",
        "R .362, P .313, F1 .336; Seq2Seq .232 each",
        f"no: {SMALL}; five references per context, one there",
        DIALOGUE,
    ),
    Experiment(
        "O5b",
        "DELLA's conditional form on the same data",
        f"{MAIN}tasks:response,data=D/dailydialog_pp",
        "DailyDialog++, 7,608 contexts, five references",
        "– (DELLA's paper has no dialogue)",
        "not with O5: long contexts are dropped, not cut, so that others are evaluated; beam "
        "search instead of sampling",
        DIALOGUE,
    ),
    Experiment(
        "O6",
        "Optimus, stylised responses (StyleFusion)",
        "–: there is no command",
        "Holmes stories, not in the data here",
        "R .385, P .268, F1 .316, style .119 and .165",
        "–",
        reason="no style corpus, and no code was released to read the details from",
    ),
    Experiment(
        "O7",
        "Optimus, generation and transfer by label",
        "jvae.experiments.labels --data=D/yelp_short",
        "short Yelp",
        "accuracy .998, BLEU .398, G .630, self-BLEU .243",
        f"no: {SMALL}; another oracle; transfer: the table By label",
        _by_label("gan"),
        report=CONTROL,
    ),
    Experiment(
        "O8",
        "Optimus, GLUE with a frozen or a trained encoder",
        "jvae.main --workdir=runs/encoder --mode=finetune --task=rte --finetune.data=D/glue_rte",
        "SST-2, RTE, MRPC, after `tasks:encoder` on the sentences of SST-2; WNLI is A3",
        "mean of 9 tasks, frozen: VAE .607, BERT .531",
        f"no: three tasks of nine; {TUNED}; most frequent label: SST-2 50.9, RTE 52.7, MRPC 68.4 %",
        ACCURACY,
        parts=tuple((task, f"finetune.{task}.pooled-frozen") for task in ("sst2", "rte", "mrpc")),
    ),
    Experiment(
        "O9",
        "Optimus, labels per class",
        "... --task=sst2 --finetune.per_class=10,100,1000 --finetune.draws=10",
        "SST-2",
        "figure only (Yelp)",
        "–: no number was published",
        tuple(
            (f"{baseline}nlu_accuracy_each_{size}", f"{title} {size}", 1)
            for baseline, title in (("", "accuracy % with"), (BASELINE, "untrained encoder with"))
            for size in (10, 100, 1_000)
        ),
        report="finetune.sst2.pooled-frozen-few",
    ),
    Experiment(
        "O10",
        "Optimus, map of features",
        "jvae.main --workdir=runs/encoder --mode=report",
        "SST-2",
        FREE,
        "–",
        reason="a picture",
    ),
    Experiment(
        "T1",
        "T5-VAE, language modelling",
        f"{COMPARE} --budget=cpu-short",
        "SNLI",
        "own tables not found; PTB: PPL 57.69, 11 units (in AdaVAE)",
        LANGUAGE,
        BOUND,
        comparison=("t5_vae", "snli"),
    ),
    Experiment(
        "T2",
        "T5-VAE, pooling, denoising, free bits",
        f"{MAIN}t5_vae:tiny --sweep=model.pool=max,mean "
        "(objective.free_bits_nats, noise.enc_delete)",
        "embedded corpus",
        "not found",
        "–",
        reason="not run; nothing published to compare with",
    ),
    Experiment(
        "A1",
        "AdaVAE, language modelling",
        f"{COMPARE} --budget=cpu-short",
        "SNLI",
        "PTB 12.77, 99.46, 7.54 (PPL, -ELBO, MI; λ = .5, cut to 32 tokens)",
        LANGUAGE,
        BOUND,
        comparison=("adavae", "snli"),
    ),
    Experiment(
        "A2",
        "AdaVAE, interpolation",
        f"{COMPARE} --budget=cpu-short",
        "SNLI",
        "smoothness .085 (Optimus .220, DELLA .253), by others",
        f"no: {SMALL}; analogies are texts to read",
        (("interpolation_smoothness", "smoothness", 3),),
        comparison=("adavae", "snli"),
    ),
    Experiment(
        "A3",
        "AdaVAE, classification with few labels",
        "... --mode=finetune --task=wnli --finetune.data=D/glue_wnli (--finetune.freeze=false "
        "--finetune.lr=1e-3)",
        "WNLI, after `tasks:encoder` on the sentences of SST-2",
        "WNLI .563, SST-2 .853, Yelp .966",
        f"no: {TUNED}; always predicting the most frequent label gives 56.3 %; the frozen encoder "
        "is below it, as validation sentences repeat those of training with the other label",
        ACCURACY,
        parts=(
            ("frozen", "finetune.wnli.pooled-frozen"),
            ("fine-tuned", "finetune.wnli.pooled-tuned"),
        ),
    ),
    Experiment(
        "A4",
        "AdaVAE, generation and transfer by label",
        "jvae.experiments.labels --data=D/yelp_short",
        "short Yelp",
        "not found",
        "–; transfer: the table By label",
        _by_label("ctrl_gen"),
        report=CONTROL,
    ),
    Experiment(
        "A5",
        "AdaVAE, dialogue responses",
        "–: there is no command; O5 is the same objective",
        "DailyDialog",
        "none: its code does not run",
        "–",
        reason="nothing published to compare with",
    ),
    Experiment(
        "D1",
        "DELLA, language modelling",
        f"{COMPARE} --budget=cpu-short",
        "SNLI",
        "Yelp: PPL 12.35, -ELBO 239.83, KL 29.47, MI 10.78",
        f"{LANGUAGE}; published bounds average over layers",
        BOUND,
        comparison=("della", "snli"),
    ),
    Experiment(
        "D2",
        "DELLA, samples of the prior",
        f"{COMPARE} --budget=cpu-short --models=della",
        "SNLI",
        "Yelp: BLEU 57.15, self-BLEU 60.02, Dist 17.63, JS .43, CND .13, MAUVE .55",
        f"no: {SMALL}; orders of n-grams are not stated; CND was found in no source, MAUVE needs a "
        "published model",
        (
            ("bleu_test", "BLEU", 1),
            ("self_bleu", "self-BLEU", 1),
            ("dist_2", "Dist-2", 3),
            ("jaccard", "JS", 3),
        ),
        comparison=("della", "snli"),
    ),
    Experiment(
        "D3",
        "DELLA, stories",
        f"{MAIN}della:story --config.data.train=... (JSON lines, source and target)",
        "WritingPrompts, not in the data here",
        "BLEU 41.39, ROUGE 35.46/8.78/17.20, BERTScore 81.77, KL 28.14",
        "–",
        reason="no data",
    ),
    Experiment(
        "D4",
        "DELLA, summaries",
        f"{MAIN}della:bart (della:t5) --config.init.decoder=facebook/bart-base "
        "--config.data.max_words=1000 --config.data.row_tokens=1024 --config.data.train=...",
        "CNN/DM, not in the data here",
        "BLEU 49.18, ROUGE 41.27/19.85/29.84, BERTScore 88.09, KL .91",
        "–",
        reason="no data",
    ),
    Experiment(
        "D5",
        "DELLA, paraphrases, one stack",
        f"{MAIN}tasks:paraphrase,data=D/quora",
        "Quora, 4,500 duplicates of 134,000",
        "BLEU 64.40, ROUGE-L 61.03, KL 3.88 (BART)",
        f"no: {SMALL}; a stack that reads the source as a prefix, with fewer beams",
        TEXTS,
    ),
    Experiment(
        "D5b",
        "DELLA, paraphrases, encoder and decoder (BART's layers)",
        f"{MAIN}tasks:paraphrase,data=D/quora,stack=bart",
        "Quora, 4,500 duplicates of 134,000",
        "BLEU 64.40, ROUGE-L 61.03, KL 3.88 (BART)",
        f"no: {SMALL}; fewer beams; after this budget it writes memorised questions",
        TEXTS,
    ),
    Experiment(
        "D5c",
        "DELLA, entailed hypotheses",
        f"{MAIN}tasks:hypothesis,data=D/snli_pairs",
        "SNLI, 6,667 entailments of 20,000 pairs",
        "– (not in the paper)",
        "–: no other result on this data",
        TEXTS,
    ),
    Experiment(
        "D6",
        "DELLA, ablations",
        f"{MAIN}della:tiny,ablate=no_product (independent, shared, lower, upper)",
        "embedded corpus",
        "all worse than DELLA in PPL on Yelp",
        "only the order",
        (("nll_100", "NLL_100", 2), ("ppl_w", "PPL_w", 2), ("kl", "KL", 2)),
        parts=tuple((name, "test") for name in ABLATIONS),
    ),
    Experiment(
        "D7",
        "DELLA, interpolation",
        f"{MAIN}della:base ...; --mode=interpolate",
        "Yelp",
        FREE,
        "–",
        reason=WEIGHTS,
    ),
    Experiment(
        "S1",
        "SRI, language modelling",
        f"{COMPARE} --budget=cpu-short",
        "SNLI",
        "own tables not found",
        "–",
        (*BOUND[:2], ("kl", "KL", 2)),
        comparison=("sri", "snli"),
    ),
    Experiment(
        "S2",
        "SRI, few labels",
        "jvae.main --workdir=runs/few/seed=0 --mode=probe --config.evals.protocol=sri "
        "--config.evals.chains=10 --config.evals.sentences=300",
        FEW_LABELS,
        "87.1 ± .25 % with 100 labels (from its released features)",
        f"no: {SMALL}; means of 10 chains of 20 steps instead of 200 of 40",
        (
            *((f"sri_label_{size}", f"accuracy % with {size:,}", 1) for size in SRI_SIZES),
            ("sri_label_100_logistic", "logistic regression with 100", 1),
            (f"{BASELINE}sri_label_100", "untrained model with 100", 1),
        ),
        parts=tuple((seed, "probe.sri") for seed in SEEDS),
        averaged=True,
    ),
    Experiment(
        "S3",
        "SRI, clusters",
        "jvae.main --workdir=runs/few/seed=0 --mode=probe --config.evals.sentences=300 "
        "--config.evals.per_label=10,100",
        FEW_LABELS,
        "79.8 to 80.0 % or 64.5 to 66.7 %, by seed",
        f"no: {SMALL}; one label has 60.5 % of the sentences",
        (
            ("cluster_label_accuracy", "accuracy %", 1),
            (f"{BASELINE}cluster_label_accuracy", "untrained model", 1),
        ),
        parts=tuple((seed, "probe") for seed in SEEDS),
        averaged=True,
    ),
    Experiment(
        "S4",
        "SRI, interpolation",
        f"{MAIN}sri:ptb ...; --mode=interpolate",
        "PTB",
        FREE,
        "–",
        reason="sentences to read",
    ),
)


def report_of(key: str) -> str:
    """The name of the report whose metrics an experiment stores under a key.

    Args:
      key: the key of an experiment, such as O5, or of one of its parts, such as O2/memory.
    Raises: ConfigError for an unknown key.
    """
    reports: dict[str, str] = {}
    for experiment in EXPERIMENTS:
        parts = {f"{experiment.key}/{name}": report for name, report in experiment.parts}
        reports |= parts or {experiment.key: experiment.report}
    if key not in reports:
        raise ConfigError(f"experiment {key!r}: unknown; known: {', '.join(reports)}")
    return reports[key]


def _figure(row: Row, metrics: Sequence[tuple[str, str, int]]) -> str | None:
    """The metrics that a row has; None if it has none."""
    parts = []
    for metric, title, digits in metrics:
        name, title = (text.format(k=row.get("k", "")) for text in (metric, title))
        if name.startswith(BASELINE):
            value, se = row.get("baseline", {}).get(name.removeprefix(BASELINE)), None
        else:
            value, se = row["metrics"].get(name), row["se"].get(name)
        if value is not None:
            error = "" if se is None else f" ± {se:.{digits}f}"
            least = "≥ " if name == "mi" and row.get("mi_saturated") else ""
            parts.append(f"{title} {least}{value:.{digits}f}{error}")
    return ", ".join(parts) or None


def _mean(rows: Sequence[Row]) -> Row:
    """Metrics and baselines averaged over rows that all have them; `se` is the standard deviation
    between the rows.
    """

    def common(key: str) -> Iterable[tuple[str, list[float]]]:
        by_name = [
            {name: value for name, value in row.get(key, {}).items() if value is not None}
            for row in rows
        ]
        shared = set(by_name[0]).intersection(*by_name[1:])
        return ((name, [values[name] for values in by_name]) for name in sorted(shared))

    metrics = dict(common("metrics"))
    return dict(rows[0]) | {
        "metrics": {name: statistics.fmean(values) for name, values in metrics.items()},
        "se": {name: statistics.stdev(values) for name, values in metrics.items()},
        "baseline": {name: statistics.fmean(values) for name, values in common("baseline")},
    }


def _budget(rows: Sequence[Row]) -> str:
    """Updates, seconds and hardware. Parts measured on one trained model share its training."""
    trainings = {(row["command"], row["train_s"]): row for row in rows}
    steps = [row.get("updates") or row.get("steps") for row in trainings.values()]
    most = max((count for count in steps if count), default=0)
    times = f"{len(trainings)} x " if len(trainings) > 1 else ""
    updates = f"{times}{most:,} updates, " if most else ""
    seconds = sum(row["train_s"] for row in trainings.values()) + sum(r["eval_s"] for r in rows)
    return f"{updates}{seconds:,.0f} s on {rows[0]['hardware'].split(',')[0]}"


def _measured(
    experiment: Experiment, by_key: Mapping[str, Row], by_entry: Mapping[tuple[str, str], Row]
) -> dict[str, tuple[Row, str]]:
    """Row and metrics of each part that is measured, by its name; of the only part by ""."""
    measured: dict[str, tuple[Row, str]] = {}
    for name in [name for name, _ in experiment.parts] or [""]:
        row = by_key.get(f"{experiment.key}/{name}" if name else experiment.key)
        if row is None and experiment.comparison:
            row = by_entry.get(experiment.comparison)
        if row and (figure := _figure(row, experiment.metrics)):
            measured[name] = row, figure
    return measured


def table(rows: Sequence[Row], comparison: Sequence[Row]) -> str:
    """Markdown of every experiment.

    Args:
      rows: stored results, by key under "name". comparison: rows of the comparison of all models.
    """
    by_key = {row["name"]: row for row in rows}
    by_entry = {
        (row["entry"], row["data"]): row
        for row in sorted(comparison, key=lambda row: row["seed"], reverse=True)
        if row["budget"] == "cpu-short" and not row["point"]
    }
    head = ("", "experiment", "command", "data", "budget", "ours", "published", "compares")
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for experiment in EXPERIMENTS:
        measured = _measured(experiment, by_key, by_entry)
        figures = [
            f"{name}: {figure}" if name else figure for name, (_, figure) in measured.items()
        ]
        if experiment.averaged and len(measured) > 1:
            mean = _figure(_mean([row for row, _ in measured.values()]), experiment.metrics)
            figures = [f"mean ± sd of {len(measured)} training seeds: {mean}"]
        missing = [name for name, _ in experiment.parts if name not in measured]
        if figures and missing:
            figures.append(f"{', '.join(missing)}: not run")
        reason = experiment.reason or "the run was not finished"
        ours = "; ".join(figures) or f"not measured: {reason}"
        budget = _budget([row for row, _ in measured.values()]) if measured else "–"
        command = f"`{experiment.command}`"
        cells = (experiment.key, experiment.what, command, experiment.data, budget, ours)
        cells = (*cells, experiment.published, experiment.compares)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
