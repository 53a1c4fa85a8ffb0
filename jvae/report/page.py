"""The HTML page of a report: no network access, no scripts, all figures embedded."""

import base64
import re
from collections.abc import Iterable, Sequence
from html import escape

from jvae.evals import by_length
from jvae.evals.card import ReportRecord, RowRecord, show
from jvae.evals.definitions import define, place
from jvae.report.changes import changes
from jvae.report.gather import LISTED, OFFSETS, Content, Latents
from jvae.report.look import Picture
from jvae.runs.console import Value

RASTER = ("map",)  # thousands of points: smaller as PNG
HEADLINE = (
    "nll",
    "exact",
    "ppl_w",
    "unknown_tokens",
    "kl",
    "mi",
    "au_0.01",
    "exact_match",
    "exact_match_ceiling",
    "bleu",
)
CSS = """
:root { color-scheme: light dark; --page: #fff; --ink: #222; --faint: #666; --line: #ddd;
  --hair: #eee; --link: #00598c; --new: #b34700; --note: #fff8e5; --edge: #e69f00; }
@media (prefers-color-scheme: dark) {
  :root { --page: #16181c; --ink: #e4e4e4; --faint: #a3a3a3; --line: #3d4047; --hair: #2b2e34;
    --link: #7cc4f0; --new: #ffab70; --note: #33290f; --edge: #b37b00; }
  figure img { background: #fff; border-radius: 6px; }
}
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1.2rem 4rem; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; }
a { color: var(--link); }
p.sub, figcaption, td.faint, th.faint, dd { color: var(--faint); }
ul.numbers { display: flex; flex-wrap: wrap; gap: .6rem; list-style: none; padding: 0; }
ul.numbers li { border: 1px solid var(--line); border-radius: 6px; padding: .35rem .8rem; }
ul.numbers b { display: block; font-size: 1.15rem; }
ul.notes { background: var(--note); border-left: 4px solid var(--edge); padding: .5rem 1.6rem; }
figure { margin: .6rem 0 1.2rem; }
figure, div.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .4rem 0 1rem; }
th, td { text-align: left; vertical-align: top; padding: .15rem .9rem .15rem 0;
  border-bottom: 1px solid var(--hair); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.text { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .86rem; }
td.text b { color: var(--new); font-weight: 600; }
td.note { min-width: 16rem; }
td.name { white-space: nowrap; }
td.break { overflow-wrap: anywhere; font-size: .86rem; }
summary { cursor: pointer; }
dt { font-weight: 600; }
dd { margin: 0 0 .4rem 1rem; }
span[title] { cursor: help; border-bottom: 1px dotted var(--faint); }
@media (max-width: 40rem) {
  body { padding: .8rem .7rem 3rem; font-size: 14px; }
  h1 { font-size: 1.3rem; overflow-wrap: anywhere; }
  td.note { min-width: 10rem; }
  td.text { min-width: 8.5rem; }
  td, th { padding-right: .6rem; }
  ul.numbers { gap: .35rem; }
  ul.numbers li { padding: .2rem .5rem; }
}
"""


def render(data: Content, pictures: dict[str, Picture]) -> str:
    """The page as HTML; all text from data, models or configs is escaped."""
    sections = [
        ("metrics", "Metrics", _metrics(data.evaluation)),
        ("length", "By length", _by_length(data.evaluation)),
        ("training", "Training", _figure(pictures, "training")),
        ("likelihood", "Likelihood", _figure(pictures, "nll")),
        ("latent", "Latent use", _figure(pictures, "kl")),
        ("maps", "Latent maps", _figure(pictures, "map")),
        ("factors", "Factors", _factors(data.latents)),
        ("probes", "Probes", _metrics(data.probes)),
        ("interpolations", "Interpolations", _interpolations(data.latents)),
        ("traversals", "Traversals", _traversals(data.latents)),
        ("reconstructions", "Reconstructions", _reconstructions(data)),
        ("samples", "Samples", _prior(data)),
        ("card", "Reporting card", _card(data)),
        ("config", "Config", _config(data)),
    ]
    sections = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _ in sections)
    body = "".join(
        f'<section id="{anchor}"><h2>{title}</h2>{html}</section>\n'
        for anchor, title, html in sections
    )
    title = escape(data.name)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title} · jvae</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f"<header><h1>{title}</h1>{_subtitle(data)}{_headline(data)}<nav>{links}</nav></header>\n"
        f"{_notes(data)}{body}</body>\n</html>\n"
    )


def _subtitle(data: Content) -> str:
    family = data.config.get("model.family", "")
    steps = data.log[-1]["step"] if data.log else None
    parts = [f"config {data.config.get('name', '')}", f"model family {family}"]
    if steps:
        parts.append(f"trained {steps:,} steps")
    if data.step is not None and data.step != steps:
        parts.append(f"figures and texts of step {data.step:,}, the best")
    if data.evaluation:
        parts.append(str(data.evaluation.get("title", "")))
    return f'<p class="sub">{escape(" · ".join(part for part in parts if part))}</p>'


def _headline(data: Content) -> str:
    values = (data.evaluation or {}).get("metrics", {})
    most = max((int(n[4:]) for n in values if n.startswith("nll_") and n[4:].isdigit()), default=1)
    # A bound with more draws than the evaluation's K is a spot check on fewer sentences.
    k = (data.evaluation or {}).get("card", {}).get("k", most)
    names = [f"nll_{k}" if name == "nll" else name for name in HEADLINE]
    # A withheld value stays on the page as a dash, with the reason in its hover text.
    items = "".join(
        f'<li title="{escape(_reason(data.evaluation, name))}">{escape(name)}'
        f"<b>{escape(_shown(values[name]))}</b></li>"
        for name in names
        if name in values and (values[name]["value"] is not None or values[name]["note"])
    )
    return f'<ul class="numbers">{items}</ul>' if items else ""


def _notes(data: Content) -> str:
    notes = [*data.notes, *(data.evaluation or {}).get("notes", [])]
    items = "".join(f"<li>{escape(str(note))}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>' if items else ""


def _figure(pictures: dict[str, Picture], name: str) -> str:
    if name not in pictures:
        return ""
    picture = pictures[name]
    kind, data = ("png", picture.png) if name in RASTER else ("svg+xml", picture.svg)
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    # At its natural size, so that text is legible; a narrow window scrolls it.
    size, text = f"{96 * picture.width:.0f}", escape(picture.text)
    return f'<figure><img src="{source}" width="{size}" alt="{text}"></figure>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], classes: Sequence[str]) -> str:
    """A table whose cells are already HTML."""
    tops = "".join(
        f'<th class="{kind}">{title}</th>' for title, kind in zip(head, classes, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f'<td class="{k}">{cell}</td>' for cell, k in zip(row, classes, strict=True))
        + "</tr>\n"
        for row in rows
    )
    return f'<div class="wide"><table><tr>{tops}</tr>\n{body}</table></div>'


def _metrics(report: ReportRecord | None) -> str:
    values = (report or {}).get("metrics")
    if not values:
        return ""
    groups: dict[str, list[str]] = {}
    for name in sorted(values, key=lambda name: (place(name)[0], _natural(name))):
        groups.setdefault(place(name)[1], []).append(name)
    head = ("metric", "value", "standard error", "baseline", "unit", "note")
    kinds = ("", "number", "number", "number", "faint", "faint note")
    return "".join(
        f"<h3>{escape(title)}</h3>"
        + _table(head, (_row(report, name, values[name]) for name in names), kinds)
        + _explained(report, names)
        for title, names in groups.items()
    )


def _row(report: ReportRecord | None, name: str, record: RowRecord) -> list[str]:
    return [
        f'<span title="{escape(_definition(report, name))}">{escape(name)}</span>',
        escape(_shown(record)),
        *(escape(_number(record[key])) for key in ("se", "baseline")),
        escape(str(record["unit"])),
        escape(str(record["note"])),
    ]


def _explained(report: ReportRecord | None, names: Sequence[str]) -> str:
    """The definitions as text, for devices without a pointer to hover with."""
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>"
        for name in names
        if (text := _definition(report, name))
    )
    return f"<details><summary>what these are</summary><dl>{items}</dl></details>" if items else ""


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key that orders nll_10 before nll_100 and after nll_2."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _definition(report: ReportRecord | None, name: str) -> str:
    """The definition of a metric; reports from before definitions get the current one."""
    return (report or {}).get("definitions", {}).get(name) or define(name)


def _reason(report: ReportRecord | None, name: str) -> str:
    note = str((report or {}).get("metrics", {}).get(name, {}).get("note") or "")
    return "; ".join(part for part in (_definition(report, name), note) if part)


def _shown(metric: RowRecord) -> str:
    """A value as the text table shows it."""
    return metric.get("shown") or _number(metric["value"])


def _by_length(report: ReportRecord | None) -> str:
    columns = (report or {}).get("details", {}).get("by_length")
    if not columns:
        return ""
    head, rows = by_length.cells(columns)
    body = ([escape(show(value)) for value in row] for row in rows)
    intro = f"<p>{escape(by_length.TITLE[:1].upper() + by_length.TITLE[1:])}.</p>"
    return intro + _table(head, body, ("name", *["number"] * (len(head) - 1)))


def _number(value: Value) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else show(value)


def _factors(latents: Latents | None) -> str:
    if latents is None or latents.disentangled is None:
        return ""
    values = ", ".join(
        f"{escape(name)} <b>{value:.3f}</b>"
        for name, value in latents.disentangled._asdict().items()
    )
    text = (
        f"<p>Over {len(latents.mean_egz):,} test sentences: {values}. Factors depend on each "
        "other, so gaps cannot exceed the ceiling: the gap if the factors themselves were the "
        "latent.</p>"
    )
    rows = (
        [escape(f.name), str(f.values), f"{f.mig:.3f}", f"{f.ceiling:.3f}"]
        + [str(f.dim), f"{100 * f.share:.1f} %"]
        for f in latents.factors
    )
    head = ("factor", "values", "gap", "ceiling", "best dimension", "of its entropy")
    return text + _table(head, rows, ("", *["number"] * 5))


def _marked(block: Sequence[str]) -> list[str]:
    """Rows of sentences, with words that are new since the previous row in bold."""
    return [
        " ".join(
            f"<b>{escape(word)}</b>" if new else escape(word)
            for word, new in zip(text.split(" "), marks, strict=True)
        )
        for text, marks in zip(block, changes(block), strict=True)
    ]


def _strip(head: str, sides: Sequence[str], block: Sequence[str]) -> str:
    rows = zip(sides, _marked(block), strict=True)
    return f"<h3>{escape(head)}</h3>" + _table(("", ""), rows, ("number", "text"))


def _interpolations(latents: Latents | None) -> str:
    if latents is None or not latents.interpolations:
        return ""
    blocks = "".join(
        _strip(f"Pair {i + 1}", [f"{j / (len(texts) - 1):.2f}" for j in range(len(texts))], texts)
        for i, texts in enumerate(latents.interpolations)
    )
    intro = "<p>Even steps between the posterior means of two test sentences, greedily decoded.</p>"
    return intro + blocks


def _traversals(latents: Latents | None) -> str:
    if latents is None or not latents.traversals:
        return ""
    sides = [f"{offset:+g} sd" if offset else "0" for offset in OFFSETS]
    blocks = "".join(
        _strip(
            f"Dimension {t.dim}" + ("" if t.kl is None else f", KL {t.kl:.2f} nats"),
            sides,
            t.texts,
        )
        for t in latents.traversals
    )
    intro = (
        f"<p>The latent of “{escape(latents.traversed)}”, one dimension moved by "
        "standard deviations over test sentences.</p>"
    )
    return intro + blocks


def _reconstructions(data: Content) -> str:
    lines = data.samples.get("reconstructions", [])
    pairs = [(a, b) for a, b in zip(lines[::3], lines[1::3], strict=False)][:LISTED]
    if not pairs:
        return ""
    rows = ([escape(a), _marked([a, b])[1]] for a, b in pairs)
    return _table(("sentence", "reconstruction"), rows, ("text", "text"))


def _prior(data: Content) -> str:
    parts = []
    if data.warmth:
        intro = "<p>The same draws from the prior, written at several temperatures.</p>"
        rows = zip(*data.warmth.values(), strict=True)
        heads = tuple(escape(name) for name in data.warmth)
        body = ([escape(text) for text in row] for row in rows)
        parts.append(intro + _table(heads, body, ("text",) * len(heads)))
    for name, title in (("prior", "As evaluated"), ("prior_greedy", "Greedy")):
        lines = data.samples.get(name, [])[:LISTED]
        if lines:
            parts.append(
                f"<h3>{title}</h3>" + _table(("",), ([escape(t)] for t in lines), ("text",))
            )
    return "".join(parts)


def _card(data: Content) -> str:
    card = (data.evaluation or {}).get("card", {})
    pairs = [(k, v) for k, v in sorted(card.items()) if k != "config" and v is not None]
    return _pairs(pairs) if pairs else ""


def _config(data: Content) -> str:
    table = _pairs(sorted(data.config.items()))
    return f"<details><summary>{len(data.config)} values</summary>{table}</details>"


def _pairs(pairs: Iterable[tuple[str, object]]) -> str:
    rows = ([escape(name), escape(_plain(value))] for name, value in pairs)
    return _table(("", ""), rows, ("", "break"))


def _plain(value: object) -> str:
    if isinstance(value, dict | list | tuple) and not value:
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_plain(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(_plain(item) for item in value)
    return str(value)
