"""The documentation as a site, built by Sphinx from the Markdown files of the checkout:

    pip install -e '.[docs]'
    python -m sphinx -W --keep-going -c docs . build/docs      open build/docs/index.html

The source folder is the top of the checkout, so that links work here as they do in the files.
`<!-- generated: NAME -->` in a page is replaced by what the function in `GENERATED` returns, and
`<!-- generated: notes NAME -->` by the docstring of `configs/NAME.py`.
"""

import ast
import re
from pathlib import Path
from typing import Any

import jvae
from jvae.evals import definitions
from jvae.runs import own_text
from jvae.validation import reference

TOP = Path(__file__).parents[1]

project = "jvae"
author = "The jvae authors"
copyright = "The jvae authors, Apache-2.0"
release = version = jvae.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
include_patterns = ["README.md", "RESULTS.md", "BENCHMARKS.md", "launch/README.md", "docs/*.md"]
exclude_patterns = [".*", "build", "runs", "tests", "jvae"]  # folders not worth walking through
root_doc = "README"
html_theme = "furo"
html_title = f"jvae {release}"
html_additional_pages = {"index": "index.html"}  # leads to README.html
templates_path = ["_templates"]
myst_heading_anchors = 3  # the names that GitHub gives
default_role = "code"
smartquotes = False  # flags begin with two hyphens
autodoc_typehints = "none"  # shapes are in the text
autodoc_member_order = "bysource"

# The table of contents: captions, and pages in order. A page that is not listed is under "More".
PAGES = {
    "Start": ["docs/quickstart", "docs/install", "docs/data", "docs/recipes"],
    "Use": [
        *("docs/editing", "docs/training", "docs/evaluation", "docs/metrics", "docs/priors"),
        *("docs/labels", "docs/pretrained", "docs/tasks", "docs/demo", "launch/README"),
        "docs/performance",
    ],
    "Understand": ["docs/architecture", "docs/papers", "RESULTS", "BENCHMARKS"],
    "Reference": ["docs/config", "docs/api", "docs/extending"],
    "Project": ["docs/CONTRIBUTING", "docs/CHANGELOG"],
}


def contents() -> str:
    """The tables of contents in the sidebar of each page."""
    listed = {page for pages in PAGES.values() for page in pages}
    more = {f"docs/{path.stem}" for path in (TOP / "docs").glob("*.md")} - listed
    groups = PAGES | ({"More": sorted(more)} if more else {})
    return "\n".join(
        "\n".join(["```{toctree}", ":hidden:", f":caption: {title}", "", *pages, "```", ""])
        for title, pages in groups.items()
    )


def _notes(name: str) -> str:
    """The notes of a shipped config: its presets, deviations, and mistakes of the released code."""
    source = (TOP / f"configs/{name}.py").read_text(encoding="utf-8")
    return f"```text\n{ast.get_docstring(ast.parse(source))}\n```"


GENERATED = {
    "contents": contents,
    "config": reference.reference,
    "metrics": definitions.reference,
    "recipes": own_text.reference,
}


def _generated(name: str) -> str:
    kind, _, config = name.partition(" ")
    return _notes(config) if kind == "notes" else GENERATED[name]()


def _fill_in(app: Any, page: str, source: list[str]) -> None:
    text = source[0] + ("\n<!-- generated: contents -->\n" if page == root_doc else "")
    source[0] = re.sub(r"<!-- generated: (.+?) -->", lambda match: _generated(match[1]), text)


def _tidy(app: Any, kind: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Docstrings: lines after "Raises:" continue its paragraph; an indented block is code."""
    text = "\n".join(lines)
    text = re.sub(r"Raises: .+(?:\n  +\S.*)+", lambda match: " ".join(match[0].split()), text)
    text = re.sub(r"\n\n((?:    .+\n)+)\n", r"\n\n.. code-block:: python\n\n\1\n", text)
    lines[:] = text.split("\n")


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", _tidy)
    app.connect("source-read", _fill_in)
