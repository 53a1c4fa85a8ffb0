"""Lists phrases and names that read like a translation, in everything that people read.

    python -m tests.tools.prose            path:line: the phrase, and what to write
    python -m tests.tools.prose docs       only below these paths

Text means Markdown, comments of shell scripts and Python, docstrings and all other strings that
contain a space. Names are bindings: variables, arguments, attributes, functions and classes.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TOP = Path(__file__).parents[2]
# The sources of the embedded corpus are part of a cache key; the others quote phrases.
EXEMPT = (
    *("jvae/data/grammar.py", "jvae/data/lexicon.py"),
    *("tests/tools/prose.py", "tests/tools/test_prose.py"),
)
# Phrase: what to write.
PHRASES = {
    r"\b(?:told|tells?)\b": "says, reports, shows; distinguishes",
    r"\b(?:go|goes|going) on\b": "resumes, continues",
    r"(?<!there )\b(?:is|are|was|were) no (?!longer|one\b|more\b|\w+ (?:to|that)\b)\w+": "is not a",
    r"\b(?:that|which|what) there (?:is|are)\b": "name it, or leave it out",
    r"^(?:Who|Whoever|Whatever) ": "name the subject",
    r"\bas of (?!\d|commit|version)": "like, as in",
    r"\bso many\b": "that number of",
    r"\bdear\b": "expensive",
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\bbehind\b": "after",
    r"\b[Bb]esides?\b(?!\")": "next to, compared with, in addition to, while",
    r"^# of (?:the|this|these|those|its|all) ": "name what it is a part of",
    r"^Of \w+": "say what: a help text begins with the thing that it explains",
    r"\bnothing but\b": "only",
    r"^ *[a-z_]+: of (?:the|an?|each|this|its) ": "begin with the noun: name: the name of",
    r"\bby comma\b": "separated by commas",
    r"\bacts? in --": "applies to",
    r"\bnot whole\b": "incomplete",
    r"\b(?:which|that) \S+ has not\b": "lacks",
    r"\b[Tt]he way of an? ": "how it flows, its path",
    r"\b(?:ms|tokens|texts|sentences|bits) an? (?:call|element|side|split|step|update)\b": "per",
    r"\bno (?:file|object|array|text) of (?:its|that) (?:kind|type)\b": "not one of this type",
    r"\b(?:evaluator|host|trainer|program) says\b": "logs, prints, reports",
}
NAMES = {
    "found": "matches, rows, field: what it holds",
    "told": "message, lines, text",
    "given": "flags, values, sources",
    "made": "batch, program, config",
}
# Python 3.12 splits f-strings into parts.
_STRINGS = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
_PATTERNS = {re.compile(pattern, re.M): advice for pattern, advice in PHRASES.items()}
_ANY_NAME = re.compile("|".join(NAMES))


class Fault(NamedTuple):
    """One place to rewrite."""

    path: str
    line: int
    phrase: str
    advice: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.phrase!r}: {self.advice}"


def faults(paths: list[str]) -> Iterator[Fault]:
    """All faults of the tracked files below `paths`, or of all files if there are none."""
    command = ["git", "ls-files", *paths]
    listed = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=True).stdout
    for path in listed.splitlines():
        if path in EXEMPT or not (TOP / path).is_file():
            continue
        suffix = Path(path).suffix
        if suffix in (".md", ".sh", ".py", ".yml"):
            source = (TOP / path).read_text(encoding="utf-8")
            parts = [(1, source)] if suffix != ".py" else texts_of(source)
            for line, text in parts:
                yield from in_text(path, line, text)
        if suffix == ".py" and _ANY_NAME.search(source):  # parsing takes longer than searching
            for line, name in names_of(source):
                if advice := NAMES.get(name.strip("_").lower()):
                    yield Fault(path, line, name, advice)


def in_text(path: str, first: int, text: str) -> Iterator[Fault]:
    for pattern, advice in _PATTERNS.items():
        for match in pattern.finditer(text):
            line = first + text.count("\n", 0, match.start())
            yield Fault(path, line, match[0].strip(), advice)


def texts_of(source: str) -> Iterator[tuple[int, str]]:
    """First line and text of comments, joined over lines, and of strings that contain a space."""
    comment: tuple[int, int, str] | None = None  # first and last line, text
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.start[0]
        if token.type == tokenize.COMMENT:
            alone = token.line.lstrip().startswith("#")
            if comment and alone and line == comment[1] + 1:
                comment = (comment[0], line, comment[2] + "\n" + token.string.strip("# "))
                continue
            if comment:
                yield comment[0], comment[2]
            comment = (line, line if alone else -1, token.string)
        elif token.type in _STRINGS and " " in token.string:
            text = re.sub(r"^[rbfRBF]*(\"\"\"|'''|\"|')", "", token.string)
            yield line, re.sub(r"\{[^{}]*\}", "{}", text)  # values of an f-string
    if comment:
        yield comment[0], comment[2]


def names_of(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of every binding."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name
            case ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name


def main(argv: list[str]) -> int:
    """Prints all faults; returns 1 if there are any."""
    listed = list(faults(argv))
    for fault in listed:
        print(fault)
    return int(bool(listed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
