"""Reporting card and table of an evaluation, with a baseline for each metric."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import jax
import numpy as np

from jvae.evals import by_length
from jvae.evals.compat import Block
from jvae.evals.definitions import COMPATIBLE, DEFINITIONS, GREEDY, define, pattern_of
from jvae.evals.latent import LatentResult, RecGap, collapse_reasons
from jvae.evals.likelihood import LOOSE_ESS, LikelihoodResult, TextCounts
from jvae.evals.tokenization import UNKNOWN_LIMIT_PCT, Unknown
from jvae.runs.console import Value

DASH = "-"


def clean(value: object) -> Any:
    """Converts a value to JSON types: numbers, lists, string keys; NaN and inf become None."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.ndarray | jax.Array):
        return clean(np.asarray(value).tolist())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: clean(getattr(value, f.name)) for f in dataclasses.fields(value)}
    as_dict = getattr(value, "_asdict", None)
    if as_dict is not None:
        return clean(as_dict())
    if isinstance(value, Mapping):
        return {str(key): clean(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [
            clean(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)
        ]
    return str(value)


def ids_hash(id_e: np.ndarray) -> str:
    """SHA-256 of the ids of the sentences used, as ascending little-endian 64-bit integers."""
    return hashlib.sha256(np.sort(np.asarray(id_e)).astype("<i8").tobytes()).hexdigest()


class FileRecord(TypedDict):
    """A source of data on the card; its digest and size are known only for a file."""

    name: str
    sha256: NotRequired[str]
    lines: NotRequired[int]


def file_record(path: str | Path) -> FileRecord:
    """Name, SHA-256 and number of lines of a data file."""
    digest, lines, last = hashlib.sha256(), 0, b"\n"
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            lines += block.count(b"\n")
            last = block[-1:]
    return {
        "name": Path(path).name,
        "sha256": digest.hexdigest(),
        "lines": lines + (last != b"\n"),
    }


def device_record() -> dict[str, str | int]:
    """Kind and number of devices, and the JAX version."""
    return {
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
        "processes": jax.process_count(),
        "jax": jax.__version__,
    }


@dataclasses.dataclass
class Card:
    """The conditions under which the metrics were measured. None (unknown or not applicable) is
    printed as a dash.
    """

    commit: str | None = None
    config: Mapping[str, object] | None = None
    weights: str | None = None  # where the parameters come from
    data: Sequence[FileRecord] | None = None
    tokenizers: Mapping[str, str] | None = None  # by side
    preset: str | None = None  # quick, comparison or full, and sizes that differ
    k: int | None = None
    sentences: int | None = None
    sentences_hash: str | None = None
    words_with_end: int | None = None
    tokens_with_end: int | None = None
    chars_with_end: int | None = None
    unknown_tokens: Mapping[str, Unknown] | None = None  # by side, of the sentences used
    seen_in_train_pct: float | None = None
    seeds: Mapping[str, int] | None = None
    dropped: Mapping[str, object] | None = None  # sentences over the limit, and the limit
    special_tokens: Mapping[str, object] | None = None
    decode: Mapping[str, object] | None = None
    baselines: Mapping[str, str] | None = None  # what they are, by group of metrics
    signatures: Mapping[str, str] | None = None  # sacreBLEU, MAUVE
    word_vectors: str | None = None  # vectors used for interpolation smoothness
    device: Mapping[str, object] = dataclasses.field(default_factory=device_record)
    dtype: str | None = None


class RowRecord(TypedDict):
    """A row of a report as JSON."""

    value: Value
    unit: str
    se: float | None
    baseline: Value
    note: str
    shown: NotRequired[str]


class ReportRecord(TypedDict):
    """A report as JSON; wall times and their ratios appear only under `time`.

    definitions, compat: missing from reports of older versions.
    """

    title: str
    card: dict[str, Any]
    metrics: dict[str, RowRecord]
    definitions: NotRequired[dict[str, str]]
    compat: NotRequired[dict[str, dict[str, Any]]]
    details: dict[str, Any]
    notes: list[str]
    time: dict[str, float | None]


def with_current_names(report: ReportRecord) -> ReportRecord:
    """A report read from a file; versions before the first release called a baseline a control."""
    for record, old, new in (
        (report["card"], "controls", "baselines"),
        *((row, "control", "baseline") for row in report["metrics"].values()),
    ):
        if old in record:
            record[new] = record.pop(old)
    return report


class Row(NamedTuple):
    """One metric. `shown` replaces the value in the table if the bare number would be misleading.

    A metric that `jvae.evals.definitions` does not list needs its own `definition`: one line that
    includes the unit.
    """

    name: str
    value: Value
    unit: str
    se: float | None = None
    baseline: Value = None
    note: str = ""
    shown: str | None = None
    definition: str = ""


def show(value: object) -> str:
    """Formats a value for a table cell: a dash for None and non-finite values."""
    value = clean(value)
    if value is None:
        return DASH
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) >= 1 or value == 0 else f"{value:.3g}"
    return str(value)


class Report:
    """Rows of metrics and their card. Equal inputs give equal JSON, apart from the `time` section.

    Args:
      title: names the split; K and the number of sentences are appended to it.
    """

    def __init__(self, title: str, card: Card):
        self.title = title
        self.card = card
        self.rows: list[Row] = []
        self.compat: list[Block] = []
        self.notes: list[str] = []
        self.details: dict[str, Any] = {}
        self.time: dict[str, float | None] = {}
        self._withheld = False  # perplexities per word, because of too many unknown tokens

    def add(
        self,
        name: str,
        value: Value,
        unit: str,
        *,
        se: float | None = None,
        baseline: Value = None,
        note: str = "",
        shown: str | None = None,
        definition: str = "",
    ) -> None:
        """Appends a `Row`. Raises: ValueError if the name is taken."""
        if any(row.name == name for row in self.rows):
            raise ValueError(f"Report: two rows are named {name!r}. Expected one row per metric.")
        self.rows.append(Row(name, value, unit, se, baseline, note, shown, definition))

    def add_likelihood(
        self,
        result: LikelihoodResult,
        counts: TextCounts | None = None,
        rec_other_nats: float | None = None,
        unknown: Mapping[str, Unknown] | None = None,
    ) -> None:
        """Adds the rows of section likelihood; fills in the card's K, sentences and counts.

        Args:
          rec_other_nats: the baseline of Rec, from `rec_gap`.
          unknown: unknown tokens of the same sentences, by side. If `dec` has too many, the
            perplexity per word and the bits per character are withheld.
        """
        s = result.summary(counts)
        self.card.k, self.card.sentences = result.k, s["sentences"]
        self.card.sentences_hash = ids_hash(result.id_e)
        for name in ("words_with_end", "tokens_with_end", "chars_with_end"):
            setattr(self.card, name, s[name])
        self.card.unknown_tokens = unknown
        lost = None if unknown is None else unknown.get("dec")
        mark = f"{lost.tokens_pct:.2f} % unknown tokens" if lost and lost.tokens_pct else ""
        nats = "nats/sentence"
        self.add("rec", s["rec_nats"], nats, se=s["rec_nats_se"], baseline=rec_other_nats)
        self.add("neg_elbo", s["neg_elbo_nats"], nats, se=s["neg_elbo_nats_se"], note=mark)
        for k, value in s["nll_nats_at"].items():
            if k != result.k:
                self.add(f"nll_{k}", value, nats, note=mark)
        self.add(f"nll_{result.k}", s["nll_nats"], nats, se=s["nll_nats_se"], note=mark)
        self.add("ess", s["ess"], f"of {result.k} draws")
        self._add_unknown(unknown)
        withheld, ppl_t = self._withheld, s["ppl_t"]
        why = f"withheld: {mark}" if withheld else mark
        self.add("ppl_w", None if withheld else s["ppl_w"], "per word", note=why)
        text = f"{show(ppl_t)} (<unk>)" if withheld else None
        self.add("ppl_t", ppl_t, "per token", note=mark, shown=text)
        self.add("bpc", None if withheld else s["bpc"], "bits/character", note=why)
        self.details["kl_of_likelihood_nats"] = s["kl_nats"]
        if s["loose"]:
            self.notes.append(
                f"Effective sample size {s['ess']:.1f} is below {LOOSE_ESS:g}: the bound is loose."
            )
        bad = int(np.sum(~np.isfinite(result.scores.nll_e)))
        if bad:
            self.notes.append(f"{bad} sentences have no finite NLL; means over them are dashes.")

    def _add_unknown(self, unknown: Mapping[str, Unknown] | None) -> None:
        if unknown is None:
            return
        lost = unknown["dec"]
        self._withheld = lost.misleading
        note = f"encoder {unknown['enc'].tokens_pct:.2f}" if "enc" in unknown else ""
        self.add("unknown_tokens", lost.tokens_pct, "%", note=note)
        self.add("unknown_sentences", lost.sentences_pct, "%")
        if self._withheld:
            self.notes.append(
                f"{lost.tokens_pct:.2f} % of the decoder's tokens are unknown (in "
                f"{lost.sentences_pct:.1f} % of the sentences). These words are all one token, so "
                f"the bounds are of easier text; above {UNKNOWN_LIMIT_PCT:g} %, perplexity per "
                "word and bits per character are withheld. Train with data.tokenizer_kind=bpe or a "
                "larger data.vocab."
            )

    def add_compat(self, blocks: Sequence[Block]) -> None:
        """Adds the published estimators; their perplexities per word are withheld like ours."""
        for block in blocks:
            rows = [
                row._replace(value=None, unit=f"{row.unit}, withheld: unknown tokens")
                if self._withheld and row.unit.startswith("per word")
                else row
                for row in block.rows
            ]
            self.compat.append(block._replace(rows=rows))

    def add_latent(
        self,
        result: LatentResult | None,
        baseline: LatentResult | None,
        gap: RecGap | None = None,
        prior: LatentResult | None = None,
        baseline_name: str = "untrained model",
    ) -> None:
        """Adds the rows of section latent use; all dashes for a model without a latent.

        Args:
          result: None for a model without a latent.
          baseline: the same metrics of the untrained model, or of chains replaced by prior draws.
          prior: scores of a posterior equal to the prior, where these are not 0. If they include
            active units, those of the model are noise as well and are not reported.
        Raises: ValueError if there is a result but no baseline.
        """
        nats, gap = "nats/sentence", gap or RecGap(None, None, None)
        if result is None:
            for name in ("kl", "mi", "marginal_gap", "au_0.01", "au_0.2", "rec_gap", "collapsed"):
                self.add(name, None, "")
            return
        if baseline is None:
            raise ValueError(
                "Report: latent metrics without their baseline. "
                "Run latent_metrics on the untrained parameters too."
            )
        noise = prior is not None and any(prior.active.values())
        if prior is not None and noise:
            self.notes.append(
                f"Active units are not reported: draws from the prior give {prior.active} instead "
                f"of 0, because {result.sentences} sentences and so few chains are mostly noise; "
                "use at least 500 sentences."
            )
        self.card.baselines = {**(self.card.baselines or {}), "latent": baseline_name}
        by_group = result.kl_per_group or []
        kl_texts = ", ".join(f"{kl:.2f}" for kl in by_group)
        note = f"per {result.groups} [{kl_texts}]" if by_group[1:] else ""
        self.add("kl", result.kl_nats, nats, baseline=baseline.kl_nats, note=note)
        sizes = f"N = {result.sentences}, ln N = {result.ceiling_nats:.2f}, same draws"
        sizes += "; includes information from the source" if result.conditional else ""
        saturated = f"≥ {result.mi_nats:.2f} (saturated)" if result.saturated else None
        self.add(
            "mi",
            result.mi_nats,
            nats,
            se=result.mi_nats_se,
            baseline=baseline.mi_nats,
            note=sizes,
            shown=saturated,
        )
        self.add(
            "marginal_gap", result.marginal_gap_nats, nats, baseline=baseline.marginal_gap_nats
        )
        for limit, active in result.active.items():
            groups = result.active_per_group[limit]
            note = f"per {result.groups} {groups}" if len(groups) > 1 else ""
            control_count = baseline.active[limit]
            value = None if noise else active
            self.add(
                f"au_{limit:g}", value, f"of {result.units}", baseline=control_count, note=note
            )
        # The gap is already relative to its baseline, the shuffled latent, shown in row `rec`.
        self.add(
            "rec_gap", gap.gap_nats, nats, se=gap.gap_nats_se, note="latent of another sentence"
        )
        reasons = collapse_reasons(result, gap, prior)
        verdict = "yes" if reasons else "no"
        self.add("collapsed", bool(reasons), "", note="; ".join(reasons), shown=verdict)
        self.details["latent"] = {
            "saturated": result.saturated,
            "kl_profile_nats": result.kl_profile_sorted,
            "kl_per_group_nats": result.kl_per_group,
            "active_per_group": result.active_per_group,
            "collapse_reasons": reasons,
        }

    def add_group(
        self,
        group: Mapping[str, Value],
        baseline: Mapping[str, Value] | None = None,
        prefix: str = "",
        notes: Mapping[str, str] | None = None,
    ) -> None:
        """Adds rows from a mapping such as `text.reconstruction` returns; copies its signatures to
        the card.

        Args:
          baseline, notes: mappings with the same names; a missing name means neither of them.
        """
        for name, value in group.items():
            if name.endswith("_signature"):
                signature = {f"{prefix}{name.removesuffix('_signature')}": str(value)}
                self.card.signatures = {**(self.card.signatures or {}), **signature}
                continue
            unit = "%" if name.endswith("_pct") else ("0-100" if "bleu" in name else "")
            self.add(
                prefix + name.removesuffix("_pct"),
                value,
                unit,
                baseline=(baseline or {}).get(name),
                note=(notes or {}).get(name, ""),
            )

    def value(self, name: str) -> Value:
        """The value of a metric; None if it has no row."""
        return next((row.value for row in self.rows if row.name == name), None)

    def as_dict(self) -> ReportRecord:
        """The report as JSON types."""
        metrics = {
            row.name: {
                "value": row.value,
                "unit": row.unit,
                "se": row.se,
                "baseline": row.baseline,
                "note": row.note,
                **({} if row.shown is None else {"shown": row.shown}),
            }
            for row in self.rows
        }
        return clean(
            {
                "title": self.heading(),
                "card": self.card,
                "metrics": metrics,
                "definitions": {row.name: row.definition or define(row.name) for row in self.rows},
                "compat": {
                    block.mode: {
                        "warning": block.warning,
                        "metrics": {row.name: row._asdict() for row in block.rows},
                    }
                    for block in self.compat
                },
                "details": self.details,
                "notes": self.notes,
                "time": self.time,
            }
        )

    def to_json(self) -> str:
        """`as_dict` with sorted keys, ending in a newline."""
        return json.dumps(self.as_dict(), sort_keys=True, indent=2, allow_nan=False) + "\n"

    def heading(self) -> str:
        """The title with preset, K and number of sentences, if known."""
        parts = (
            self.card.preset,
            None if self.card.k is None else f"K = {self.card.k}",
            None if self.card.sentences is None else f"{self.card.sentences} sentences",
        )
        rest = ", ".join(part for part in parts if part is not None)
        return f"{self.title} ({rest})" if rest else self.title

    def table(self) -> str:
        """The rows as aligned text, followed by notes, wall times and the card."""
        head = ("metric", "value", "se", "baseline", "unit", "note")
        body = [
            (
                row.name,
                show(row.value) if row.shown is None else row.shown,
                show(row.se),
                show(row.baseline),
                row.unit,
                row.note,
            )
            for row in self.rows
        ]
        lines = [self.heading(), "", *aligned([head, *body]), *self._compat_lines()]
        lines += self._length_lines()
        lines += ["", *(f"note: {note}" for note in self.notes)] if self.notes else []
        lines += ["", *aligned([(name, show(value)) for name, value in sorted(self.time.items())])]
        # The config would fill the screen; the JSON has it.
        fields = [(n, v) for n, v in sorted(clean(self.card).items()) if n != "config"]
        lines += ["", "card", *aligned([(name, _compact(value)) for name, value in fields])]
        lines += ["", "definitions", *aligned(self.definitions())]
        return "\n".join(lines) + "\n"

    def definitions(self) -> list[tuple[str, str]]:
        """Definitions of the report's metrics; metrics that differ only in a number share one."""
        meanings: dict[str, str] = {}
        for row in self.rows:
            plain = row.name
            if pattern_of(plain) is None and define(plain):
                plain = row.name.removeprefix(GREEDY)
            name = pattern_of(plain)
            if row.definition or name is None:
                meanings.setdefault(row.name, row.definition)
            else:
                meanings.setdefault(name, DEFINITIONS[name])
        for row in (row for block in self.compat for row in block.rows):
            meanings.setdefault(f"{row.name} of a mode", COMPATIBLE[row.name])
        return [(name, text) for name, text in meanings.items() if text]

    def _length_lines(self) -> list[str]:
        if not self.details.get("by_length"):
            return []
        head, rows = by_length.cells(self.details["by_length"])
        body = [[show(value) for value in row] for row in rows]
        return ["", by_length.TITLE, *aligned([head, *body])]

    def _compat_lines(self) -> list[str]:
        """The published estimators, kept apart from the metrics and always with their warnings."""
        if not self.compat:
            return []
        body = [
            (block.mode, row.name, show(row.value), show(row.ours), row.unit)
            for block in self.compat
            for row in block.rows
        ]
        lines = ["", "compatible modes, slips of the published code included"]
        lines += aligned([("mode", "metric", "value", "jvae", "unit"), *body])
        return lines + [f"warning: {block.warning}" for block in self.compat]


def _compact(value: object) -> str:
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else show(value)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of left-aligned columns, two spaces apart, without trailing spaces."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
