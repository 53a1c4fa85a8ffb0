"""Every metric that a report prints is defined where it is printed."""

import ast
import json
import tarfile
from pathlib import Path

import pytest

import jvae
from jvae.evals import references, text
from jvae.evals.card import Card, Report, Row
from jvae.evals.definitions import COMPATIBLE, DEFINITIONS, define, pattern_of
from jvae.evals.disentangle import Disentanglement

EVALS = Path(jvae.__file__).parent / "evals"
STORED = sorted((Path(__file__).parents[1] / "stored").glob("*.tar.xz"))


def _name(node: ast.expr) -> str | None:
    """A row's name in the source; what is filled in later is `1`, as in nll_1 or probe_1."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = (value.value if isinstance(value, ast.Constant) else "1" for value in node.values)
        return "".join(str(part) for part in parts)
    return None


def names_in(path: Path, callees: set[str]) -> set[str]:
    """Names of rows that a file makes by `Row(...)`, `.add(...)` or a `dict(name=...)`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        callee = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if callee in callees and node.args:
            names.add(_name(node.args[0]))
        elif callee == "dict":
            names |= {_name(word.value) for word in node.keywords if word.arg == "name"}
    return {name for name in names if name and name.strip("1_")}


def test_every_row_in_the_source_is_defined():
    names = {n for path in EVALS.glob("*.py") for n in names_in(path, {"Row", "add"})}
    assert {"rec", "nll_1", "au_1", "mauve", "1_smoothness", "1_nmi", "unknown_tokens"} <= names
    # Of probes, a name's first part is a variable.
    starts = ("1", "probe_1", "cluster_1", "attribute_1")
    defined = {name for name in names for start in starts if define(start + name.removeprefix("1"))}
    assert names - defined - {name for name in names if define(name)} == set()
    modes = {n for path in EVALS.glob("compat/*.py") for n in names_in(path, {"CompatRow"})}
    assert "ppl" in modes and modes == COMPATIBLE.keys()


def test_every_row_of_a_group_is_defined():
    groups = text.reconstruction(["a"], ["a"]) | text.generation(["a b", "c"], ["a"], ["b"])
    names = {name.removesuffix("_pct") for name in groups if not name.endswith("_signature")}
    names |= set(Disentanglement._fields)
    texts = [["a b", "c"]]
    names |= {f"reference_{name}" for name in references.fidelity(texts, texts)}
    names |= {
        f"{group}_{name}" for group in ("source", "latent") for name in references.diversity(texts)
    }
    assert [name for name in sorted(names) if not define(name)] == []
    assert all(
        define(f"greedy_{name}").startswith("of greedy samples: ")
        for name in groups
        if name in ("samples", "self_bleu", "dist_3")
    )


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.name.partition(".")[0])
def test_every_row_of_a_stored_report_is_defined(path):
    with tarfile.open(path) as archive:
        member = archive.extractfile("finished/eval/test.json")
        assert member is not None
        metrics = json.load(member)["metrics"]
    assert metrics and [name for name in metrics if not define(name)] == []


def test_a_pattern_takes_no_other_metric():
    assert pattern_of("nll_prior") == "nll_prior" and pattern_of("nll_100") == "nll_<K>"
    assert pattern_of("au_0.2") == "au_<T>" and pattern_of("dist_4") == "dist_<N>"
    assert pattern_of("probe_action_100") == "probe_<label>_<n>"
    assert pattern_of("probe_action") == "probe_<label>"
    assert define("something") == "" == define("greedy_something")
    for name, words in DEFINITIONS.items():
        assert pattern_of(name) or "<" in name
        assert words and "\n" not in words and len(words) < 200, name


def test_a_report_carries_its_definitions():
    card = Report("test", Card())
    for name in ("dist_1", "dist_2", "greedy_dist_1", "memorised", "rec_gap", "ess"):
        card.add(name, 0.5, "")
    card.rows.append(Row("mean_length", 3.0, "words", definition="mean words of samples"))
    card.rows.append(Row("from_elsewhere", 3.0, ""))
    legend = dict(card.definitions())
    assert list(legend) == ["dist_<N>", "memorised", "rec_gap", "ess", "mean_length"]
    lines = card.table().partition("\ndefinitions\n")[2].splitlines()
    assert [line.split()[0] for line in lines] == list(legend)
    assert lines[-1].endswith("mean words of samples")
    actual = card.as_dict()["definitions"]
    assert actual["dist_2"] == DEFINITIONS["dist_<N>"] and actual["mean_length"].startswith("mean")
    assert actual["from_elsewhere"] == ""
