"""Lays out the page with Gradio and serves it."""

import functools
import os
import random
from collections.abc import Callable
from html import escape
from typing import Any

from jvae.demo import html, look, moves, slide
from jvae.demo.log_probs import token_log_probs
from jvae.demo.neighbors import neighbors
from jvae.demo.points import point, points
from jvae.demo.samples import sample
from jvae.demo.state import Demo
from jvae.demo.unknown import unknown
from jvae.errors import ConfigError, JvaeError
from jvae.inference.neighbors import METRICS
from jvae.latent.geometry import OFFSETS

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
import gradio as gr  # noqa: E402  # pyright: ignore[reportMissingImports]

OWN, ANY = "the model's own", "any"  # choices of prior and label that set neither
# The model answers one request at a time.
IN_TURN: Any = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
NARROW = 240  # pixels below which two fields do not share a row
HOW = {"straight line": "linear", "arc": "slerp"}


def serve(demo: Demo, *, host: str, port: int | None, share: bool, block: bool = True) -> str:
    """Serves the page until it is interrupted; returns its address.

    Args:
      port: by default the first free one from 7860. share: also open a public address through
        Gradio's servers. block: return at once if false.
    Raises: ConfigError if the port is taken.
    """
    theme = gr.themes.Default(font=look.FONT, font_mono=look.MONO)
    try:
        page = build(demo)
        _, local, public = page.launch(
            server_name=host,
            server_port=port,
            share=share,
            prevent_thread_lock=True,
            quiet=True,
            theme=theme,
            css=look.CSS,
            footer_links=[],
            ssr_mode=False,
            enable_monitoring=False,
        )
    except OSError as error:
        raise ConfigError(f"--port={port}: cannot be used ({error}); choose another") from None
    address = public or local
    print(f"{demo.name}: {address} (Ctrl+C ends it)", flush=True)
    if block:
        page.block_thread()
    return address


def build(demo: Demo) -> gr.Blocks:
    """The page of a model; tabs that it cannot serve are left out."""
    with gr.Blocks(title=f"{demo.name} · jvae", analytics_enabled=False, fill_width=True) as page:
        about = f"{demo.about}; examples: {demo.examples.origin}"
        gr.HTML(f"<h1>{escape(demo.name)}</h1>{html.note(about)}")
        if demo.has_latent:
            with gr.Tab("Slide"):
                _slide_tab(demo, page)
        with gr.Tab("Sample"):
            _sample_tab(demo)
        if demo.has_latent:
            with gr.Tab("Move") as tab:
                _move_tab(demo, tab)
            with gr.Tab("Neighbors"):
                _neighbors_tab(demo)
            with gr.Tab("Map") as tab:
                _map_tab(demo, tab)
        with gr.Tab("Log-probabilities"):
            _log_probs_tab(demo)
        if not demo.has_latent:
            gr.HTML(html.note("A language model has no latent to slide, move or map."))
    return page


def _answer(function: Callable[..., Any]) -> Callable[..., Any]:
    """Shows errors of the user as a message on the page."""

    @functools.wraps(function)
    def answered(*values: Any) -> Any:
        try:
            return function(*values)
        except JvaeError as error:
            raise gr.Error(escape(str(error)), title="", print_exception=False) from None

    return answered


def _warn_of_unknown(demo: Demo, *texts: str) -> None:
    """Names the words that the model reads as unknown, which it cannot give back."""
    if words := unknown(demo, *texts):
        gr.Warning(escape(f"Words that the model does not know: {', '.join(words)}"), title="")


def _run(function: Callable[..., Any], inputs: Any, outputs: Any, *triggers: Any) -> None:
    """Answers each of these events with the model."""
    for trigger in triggers:
        trigger(_answer(function), inputs, outputs, **IN_TURN)


def _example(demo: Demo, place: int) -> str:
    texts = demo.examples.texts
    return texts[place % len(texts)] if texts else ""


def _sentence(demo: Demo, label: str, place: int = 0) -> gr.Textbox:
    return gr.Textbox(_example(demo, place), label=label, lines=1, max_lines=4, min_width=NARROW)


def _shuffle(demo: Demo, *boxes: gr.Textbox) -> None:
    """A button that fills boxes with other example sentences."""

    def pick() -> Any:
        texts = random.sample(demo.examples.texts, len(boxes))
        return texts if len(boxes) > 1 else texts[0]

    if len(demo.examples.texts) >= len(boxes):
        button = gr.Button("Shuffle", min_width=120)
        button.click(pick, None, list(boxes), api_visibility="private")


def _slide_tab(demo: Demo, page: gr.Blocks) -> None:
    with gr.Row():
        a, b = _sentence(demo, "From"), _sentence(demo, "To", 1)
    with gr.Row():
        steps = gr.Slider(3, 21, 11, step=2, label="Sentences", min_width=NARROW)
        how = gr.Radio(list(HOW), value=next(iter(HOW)), label="Path", min_width=NARROW)
    with gr.Row():
        go = gr.Button("Interpolate", variant="primary", min_width=120)
        _shuffle(demo, a, b)
    share = gr.Slider(0, 1, 0.5, step=0.01, label="Position, 0 to 1")
    sentence_html, strip_html = gr.HTML(), gr.HTML()
    texts = gr.State([])

    def show(sentences: list[str], at: float) -> tuple[str, str]:
        sides = [f"{i / (len(sentences) - 1):.2f}" for i in range(len(sentences))]
        place = slide.index(sentences, at)
        return html.sentence(sentences[place]), html.strip(sides, sentences, place)

    def interpolate(a: str, b: str, steps: int, how: str, at: float) -> Any:
        sentences = slide.slide(demo, a, b, int(steps), HOW[how])
        _warn_of_unknown(demo, a, b)
        return sentences, *show(sentences, at)

    inputs, outputs = [a, b, steps, how, share], [texts, sentence_html, strip_html]
    _run(interpolate, inputs, outputs, go.click, a.submit, b.submit, page.load)
    share.change(
        lambda sentences, at: show(sentences, at) if sentences else ("", ""),
        [texts, share],
        [sentence_html, strip_html],
        show_progress="hidden",
        trigger_mode="always_last",
        api_visibility="private",
    )


def _sample_tab(demo: Demo) -> None:
    with gr.Row():
        temperature = gr.Slider(0.1, 2, 1, step=0.05, label="Temperature")
        top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top-p")
        count = gr.Slider(1, 50, 10, step=1, label="Sentences")
        seed = gr.Number(0, label="Seed", precision=0, minimum=0)
    with gr.Row(visible=bool(demo.priors)):
        prior = gr.Dropdown([OWN, *demo.priors], value=OWN, label="Prior")
        label = gr.Dropdown([ANY], value=ANY, label="Label", visible=False)
    with gr.Row():
        go = gr.Button("Sample", variant="primary", min_width=120)
        again = gr.Button("Next seed", min_width=120)
    out = gr.HTML()

    def draw(
        temperature: float, top_p: float, count: int, seed: int, prior: str, label: str
    ) -> str:
        texts = sample(
            demo,
            int(count),
            int(seed or 0),
            temperature=temperature,
            top_p=top_p,
            prior=None if prior == OWN else prior,
            label=None if label == ANY else label,
        )
        return html.listing(texts)

    def labels_of(prior: str) -> Any:
        labels = demo.priors.get(prior, ())
        return gr.Dropdown([ANY, *labels], value=ANY, visible=bool(labels))

    prior.change(labels_of, prior, label, api_visibility="private")
    inputs = [temperature, top_p, count, seed, prior, label]
    _run(draw, inputs, out, go.click)
    following = again.click(lambda seed: int(seed or 0) + 1, seed, seed, api_visibility="private")
    _run(draw, inputs, out, following.then)


def _move_tab(demo: Demo, tab: gr.Tab) -> None:
    text = _sentence(demo, "Sentence")
    with gr.Row():
        _shuffle(demo, text)
    with gr.Row():
        with gr.Column(min_width=300):
            gr.Markdown("### Along an attribute")
            _attributes(demo, text)
        with gr.Column(min_width=300):
            gr.Markdown("### Along one dimension")
            _dimensions(demo, text, tab)


def _attributes(demo: Demo, text: gr.Textbox) -> None:
    if not demo.examples.labels:
        gr.HTML(html.note("The examples have no labels to compute attribute vectors from."))
        return
    kinds = {kind: sorted(set(values)) for kind, values in demo.examples.labels.items()}
    first = next(iter(kinds))
    kind = gr.Dropdown(list(kinds), value=first, label="Label")
    with gr.Row():
        start = gr.Dropdown(
            [moves.OTHERS, *kinds[first]], value=moves.OTHERS, label="From", min_width=120
        )
        end = gr.Dropdown(kinds[first], value=kinds[first][0], label="To", min_width=120)
    go, out = gr.Button("Move", variant="primary"), gr.HTML()

    def choices(kind: str) -> Any:
        values = kinds[kind]
        return (
            gr.Dropdown([moves.OTHERS, *values], value=moves.OTHERS),
            gr.Dropdown(values, value=values[0]),
        )

    def move(text: str, kind: str, start: str, end: str) -> str:
        sentences = moves.attribute(demo, text, kind, start, end)
        _warn_of_unknown(demo, text)
        return html.strip([f"{s:+g} ×" if s else "0" for s in moves.STRENGTHS], sentences)

    kind.change(choices, kind, [start, end], api_visibility="private")
    _run(move, [text, kind, start, end], out, go.click)


def _dimensions(demo: Demo, text: gr.Textbox, tab: gr.Tab) -> None:
    dim = gr.Dropdown([], label="Dimension (those that vary most come first)")
    go, out = gr.Button("Move", variant="primary"), gr.HTML()

    def dims(chosen: int | None) -> Any:
        order = moves.active_dims(demo)
        return gr.Dropdown(order, value=order[0] if chosen is None else chosen)

    def move(text: str, dim: int | None) -> str:
        dim = moves.active_dims(demo)[0] if dim is None else dim
        sentences = moves.dimension(demo, text, dim)
        _warn_of_unknown(demo, text)
        return html.strip([f"{o:+g} sd" if o else "0" for o in OFFSETS], sentences)

    _run(dims, dim, dim, tab.select)
    _run(move, [text, dim], out, go.click)


def _neighbors_tab(demo: Demo) -> None:
    text = _sentence(demo, "Sentence")
    with gr.Row():
        count = gr.Slider(1, 30, 8, step=1, label="Neighbors", min_width=NARROW)
        metric = gr.Radio(list(METRICS), value=METRICS[0], label="Distance", min_width=NARROW)
    with gr.Row():
        go = gr.Button("Find", variant="primary", min_width=120)
        _shuffle(demo, text)
    out = gr.HTML()

    def find(text: str, count: int, metric: str) -> str:
        rows = neighbors(demo, text, int(count), metric)
        _warn_of_unknown(demo, text)
        return html.neighbors(rows)

    _run(find, [text, count, metric], out, go.click, text.submit)


def _map_tab(demo: Demo, tab: gr.Tab) -> None:
    kinds = list(demo.examples.labels)
    color = gr.Dropdown(kinds or None, label="Colour", visible=bool(kinds))
    if not kinds:
        gr.HTML(html.note("The examples have no labels, so all points have one colour."))
    plane, picked = gr.HTML(js_on_load=look.PICK), gr.HTML()

    def draw(kind: str | None) -> str:
        return html.scatter(points(demo, kind), demo.examples.texts)

    def pick(event: gr.EventData) -> str:
        return html.point(point(demo, int(event.place)))

    _run(draw, color, plane, tab.select, color.change)
    _run(pick, None, picked, plane.select)


def _log_probs_tab(demo: Demo) -> None:
    text = _sentence(demo, "Sentence")
    with gr.Row():
        go = gr.Button("Score", variant="primary", min_width=120)
        _shuffle(demo, text)
    out = gr.HTML()

    def score(text: str) -> str:
        scored = token_log_probs(demo, text)
        _warn_of_unknown(demo, text)
        return html.tokens(scored)

    _run(score, text, out, go.click, text.submit)
