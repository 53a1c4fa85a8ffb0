"""Runs and exports that the code of commit c66dd65 wrote (see make.py) open, resume and measure as
they did then.
"""

import json
import re
import sys
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

import jvae
from jvae import config as configs
from jvae import renamed
from jvae.cli.main import main
from jvae.evals import advice
from jvae.evals.card import with_current_names
from jvae.models import FAMILIES

sys.path.insert(0, str(Path(__file__).parent))
import stored_states as states

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in HERE.glob("*.json"))
QUICK = "lstm_lm"  # the others compile for longer
SOME_SLOW = [pytest.param(name, marks=() if name == QUICK else pytest.mark.slow) for name in NAMES]
close = pytest.approx


class Stored(NamedTuple):
    """An unpacked archive and what was read out of it when it was made."""

    folder: Path
    expected: dict[str, Any]


def unpack(name: str, folder: Path) -> Stored:
    with tarfile.open(HERE / f"{name}.tar.xz") as archive:
        # Python before 3.11.4 has no filters.
        archive.extractall(
            folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {})
        )
    return Stored(folder, json.loads((HERE / f"{name}.json").read_text(encoding="utf-8")))


def lines(folder: Path) -> list[dict[str, Any]]:
    """What the metrics file says, times left out."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [{k: v for k, v in line.items() if "/time/" not in k} for line in lines]


# What evaluation has reported in addition since the runs were stored.
NEW_METRICS = {
    *("unknown_tokens", "unknown_sentences"),
    *("bleu_test_5", "self_bleu_5", "jaccard"),  # samples from the prior
}
NEW_LATENT_METRICS = {"exact_match_ceiling", "exact_match_reachable"}
NEW_CONFIG = ("evals.metrics",)  # keys with their defaults
# Stacks name their backbone by now; these are those they had.
STACKS = ("model.encoder.backbone", "model.decoder.backbone")
BACKBONES_OF = {
    "optimus": ("bert", "gpt2"),
    "lstm_vae": ("lstm", "lstm"),
    "t5_vae": (None, "t5"),
    **dict.fromkeys(("lstm_lm", "sri"), (None, "lstm")),
    **dict.fromkeys(("adavae", "della", "lm", "sri_transformer"), (None, "gpt2")),
}
# Mutual information of Gaussian posteriors was estimated with their analytic entropy, which has a
# spread of sqrt(D / 2N) at collapse; the marginal gap is KL less this.
ANALYTIC = "analytic entropy"
ESTIMATED_ANEW = ("mi", "marginal_gap")


def analytic(stored: dict[str, Any]) -> bool:
    """Whether a stored evaluation has the mutual information of the former estimator."""
    return stored["metrics"]["mi"]["note"].endswith(ANALYTIC)


def without_additions(content: dict[str, Any]) -> None:
    """Takes out of an evaluation of today what was not there when the runs were stored."""
    latent = content["metrics"]["mi"]["value"] is not None
    for name in NEW_METRICS | (NEW_LATENT_METRICS if latent else set()):
        del content["metrics"][name]
    assert set(content.pop("definitions")) > content["metrics"].keys()
    for metric in content["metrics"].values():
        metric.pop("shown", None)
    assert content["details"].pop("by_length")["sentences"]
    assert content["card"].pop("unknown_tokens")["dec"]["tokens_pct"] == 0
    for key in NEW_CONFIG:
        del content["card"]["config"][key]


def without_changes(content: dict[str, Any], was_analytic: bool) -> None:
    """Takes out of an evaluation, of today or stored, what is measured in another way by now."""
    # Validation had a rule of collapse of its own, with this threshold.
    content["card"]["config"].pop("train.collapse_kl", None)
    if "latent" not in content["details"]:
        return
    # The thresholds of collapse are two standard errors at least, and of the KL 0.1 nat as before.
    content["metrics"].pop("collapsed")
    content["details"]["latent"].pop("collapse_reasons")
    if was_analytic:
        for name in ESTIMATED_ANEW:
            assert content["metrics"].pop(name)["value"] is not None
        content["details"]["latent"].pop("saturated")


def without_new_rule(lines: list[dict[str, Any]], was_analytic: bool) -> list[dict[str, Any]]:
    """Lines of metrics without what validation estimates or decides in another way by now, and
    without the learning rate, which they did not have.
    """
    changed = {"train/lr", "valid/collapsed", *(["valid/mi"] if was_analytic else [])}
    return [{k: v for k, v in line.items() if k not in changed} for line in lines]


def report(folder: Path) -> dict[str, Any]:
    """Measured values, and the rest of the evaluation that does not depend on machine or time."""
    content = json.loads((folder / "eval/test.json").read_text(encoding="utf-8"))
    with_current_names(content)
    config = configs.stored((folder / "config.json").read_text(encoding="utf-8"))
    own = content["card"]["config"]
    content["card"]["config"] = {renamed.key(key, config): value for key, value in own.items()}
    for name in ("commit", "device"):
        content["card"].pop(name, None)
    content.pop("time", None)
    content["notes"] = [note for note in content["notes"] if not note.startswith(advice.LABEL)]
    return content


def sentences(folder: Path) -> list[Any]:
    text = (folder / "eval/test.sentences.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def samples(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in (folder / "samples").iterdir()}


def assert_close(value: Any, want: Any, where: str = "") -> None:
    """Equal, numbers within 1e-5."""
    if isinstance(want, dict):
        assert value.keys() == want.keys(), where
        for key in want:
            assert_close(value[key], want[key], f"{where}/{key}")
    elif isinstance(want, list):
        assert len(value) == len(want), where
        for at, (item, expected) in enumerate(zip(value, want, strict=True)):
            assert_close(item, expected, f"{where}/{at}")
    elif isinstance(want, float):
        assert value == close(want, rel=1e-5, abs=1e-7), where
    elif re.search("/note$|^/notes/", where):  # prose, perhaps reworded, with the same numbers
        assert re.findall(r"\d+", value) == re.findall(r"\d+", want), where
    else:
        assert value == want, where


def assert_same_evaluation(folder: Path, want: Path) -> None:
    new, stored = report(folder), report(want)
    was_analytic = analytic(stored)
    without_additions(new)
    for content in (new, stored):
        without_changes(content, was_analytic)
    # Keys that came later have the values that leave a run as it was.
    config = new["card"]["config"]
    shipped = ("optimus", "lm", FAMILIES[config["model.family"]].preset or "optimus")
    defaults = {k: v for name in shipped for k, v in configs.flatten(configs.load(name)).items()}
    defaults = json.loads(json.dumps(defaults))
    defaults |= {"model.tokens": 0} | dict(
        zip(STACKS, BACKBONES_OF[config["model.family"]], strict=True)
    )
    lora = {key: value for key, value in defaults.items() if ".lora." in key}
    defaults |= {key.replace("decoder", "encoder"): value for key, value in lora.items()}
    for key in config.keys() - stored["card"]["config"].keys():
        assert config.pop(key) == defaults[key], key
    for key in configs.RETIRED:
        stored["card"]["config"].pop(key, None)
    # The difference of two numbers of the size of Rec carries the rounding of these.
    gaps = [content["metrics"].pop("rec_gap", {"value": 0.0})["value"] for content in (new, stored)]
    assert gaps[0] == close(gaps[1], abs=1e-5 * stored["metrics"]["rec"]["value"])
    assert_close(new, stored)
    assert_close(sentences(folder), sentences(want))
    assert samples(folder) == samples(want)


def test_the_stored_files_stay_small():
    assert len(NAMES) == 10 and all((HERE / f"{name}.tar.xz").is_file() for name in NAMES)
    assert sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file()) < 3_000_000


@pytest.mark.parametrize("name", SOME_SLOW)
def test_run_and_export_give_the_stored_text(name, tmp_path):
    folder, expected = unpack(name, tmp_path)
    want = expected["finished"]
    for kind in ("finished", "export"):
        vae = jvae.load(folder / kind)
        assert vae.sample(4) == want["sample"]
        nats = [float(value) for value in vae.nll(expected["texts"], k=expected["k"])]
        assert nats == close(want["nll"], rel=1e-5)
        if "reconstruct" in want:
            assert vae.reconstruct(expected["texts"]) == want["reconstruct"]


@pytest.mark.parametrize("name", NAMES)
def test_a_new_export_holds_what_the_old_one_does(name, tmp_path):
    folder, _ = unpack(name, tmp_path)
    jvae.export(folder / "finished", folder / "again")
    again, before = (folder / kind for kind in ("again", "export"))
    assert {path.name for path in again.iterdir()} == {path.name for path in before.iterdir()}
    vae, want = jvae.load(again), jvae.load(before)
    jax.tree.map(np.testing.assert_array_equal, vae.params, want.params)
    assert vae.decode_batch == want.decode_batch and vae.max_length == want.max_length


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_hold_the_stored_bits(name, tmp_path):
    folder, expected = unpack(name, tmp_path)
    for kind, want in expected["states"].items():
        assert states.stored_state(folder / kind) == states.today(want, folder / kind)


@pytest.mark.parametrize("name", SOME_SLOW)
def test_an_interrupted_run_resumes(name, tmp_path, monkeypatch):
    """From the very state that was saved, to the curve, the bound and the text of the old run."""
    monkeypatch.chdir(HERE)  # files of `text/` are named relative to here
    folder, expected = unpack(name, tmp_path)
    run = folder / "interrupted"
    stored = {kind: states.today(state, run) for kind, state in expected["states"].items()}
    with states.restored_states() as restored:
        assert main([*expected["command"], f"--workdir={run}"]) == 0
    assert restored == [stored["interrupted"]]
    end, want = states.stored_state(run), stored["finished"]
    assert end["checksums"].keys() == want["checksums"].keys()
    assert [end[key] for key in states.PLACE[:2]] == [want[key] for key in states.PLACE[:2]]
    was_analytic = analytic(report(folder / "finished"))
    curves = (without_new_rule(lines(path), was_analytic) for path in (run, folder / "finished"))
    assert_close(*curves)
    assert_same_evaluation(run, folder / "finished")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_finished_run_measures_the_same(name, tmp_path, monkeypatch):
    monkeypatch.chdir(HERE)
    folder, want = (unpack(name, tmp_path / place).folder / "finished" for place in ("new", "old"))
    (folder / "eval/test.json").unlink()
    assert main([f"--workdir={folder}", "--mode=eval"]) == 0
    assert_same_evaluation(folder, want)
