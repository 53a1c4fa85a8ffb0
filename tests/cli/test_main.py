"""The command line on a small run: train, evaluate, text modes, and what it says of mistakes."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

import jvae
import jvae.errors
from jvae import config as configs
from jvae.cli.main import main
from jvae.data import grammar
from jvae.runs import data as run_data
from jvae.runs import metrics

ROOT = Path(__file__).parents[2]


def test_a_run_leaves_its_files(finished):
    report = json.loads((finished / "eval/test.json").read_text())
    assert report["card"]["k"] == 3 and report["card"]["sentences"] == 8
    assert report["card"]["tokens_with_end"] > report["card"]["words_with_end"]
    values = {name: m["value"] for name, m in report["metrics"].items()}
    assert values["nll_3"] <= values["nll_1"] + 1e-3
    assert "prior_grammatical" not in values  # an own file has no grammar
    lines = metrics.read_lines(finished / "metrics.jsonl")
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert [line["step"] for line in lines if "train/loss" in line] == [3, 4, 6, 8, 9, 12]
    assert losses[-1] < losses[0]
    samples = {
        p.stem: p.read_text().rstrip("\n").split("\n") for p in (finished / "samples").iterdir()
    }
    assert len(samples["prior"]) == len(samples["prior_greedy"]) == 8
    assert set(samples) == {"prior", "prior_greedy", "reconstructions", "interpolations"}


def test_a_finished_run_is_recognised(finished, capsys, command):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.name != "config.json"}
    assert main(command(finished)) == 0
    assert "is finished" in capsys.readouterr().out
    after = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.name != "config.json"}
    assert before.keys() == after.keys()
    assert all(after[p] == before[p] for p in before if p.is_file())


@pytest.mark.slow
def test_evaluation_repeats_itself(finished):
    path = finished / "eval/test.json"
    first = json.loads(path.read_text())
    assert main([f"--workdir={finished}", "--mode=eval"]) == 0
    second = json.loads(path.read_text())
    first.pop("time"), second.pop("time")
    assert first == second


@pytest.mark.slow
def test_the_full_preset_leaves_the_quick_numbers_in_place(finished, capsys, command):
    before = {p.name: p.read_text() for p in (finished / "eval").iterdir()}
    config = (finished / "config.json").read_text()
    full = ("--config.evals.preset=full", "--config.evals.interpolation_steps=3")
    more = ("--config.evals.compat=optimus,della", "--config.evals.refine_steps=1")
    more += ("--config.evals.prior_samples=4",)
    assert main(command(finished, *full, *more, "--mode=eval")) == 0
    output = capsys.readouterr().out
    report = json.loads((finished / "eval/test.full.json").read_text())
    assert report["card"]["preset"] == (
        "full, samples=3, sentences=8, generate=8, interpolations=2"
    )
    assert list(report["compat"]) == ["della", "optimus"]
    assert sum(line.startswith("warning: ") for line in output.splitlines()) == 2
    values = {name: m["value"] for name, m in report["metrics"].items()}
    assert {"greedy_dist_1", "interpolation_smoothness", "arc_smoothness"} <= set(values)
    assert report["metrics"]["token_accuracy"]["baseline"] is not None
    assert report["time"]["cost_ratio"] > 0
    above = values["nll_prior"] - values["nll_3"]
    np.testing.assert_allclose(values["nll_prior_above"], above, atol=1e-4)
    # Chains of one tiny step change little; the parts of the gain are those of both bounds.
    gain = values["neg_elbo"] - values["neg_elbo_refined"]
    assert abs(values["refined_gain"] - gain) < 1.0
    for name, text in before.items():
        assert (finished / "eval" / name).read_text() == text
    assert (finished / "config.json").read_text() == config


@pytest.mark.parametrize("limit, measured", [(12, 12), (5, 8)])
def test_posteriors_of_few_sentences(finished, command, limit, measured):
    few = ("--config.evals.preset=comparison", f"--config.evals.posteriors={limit}")
    assert main(command(finished, *few, "--mode=eval")) == 0
    report = json.loads((finished / "eval/test.comparison.json").read_text())
    assert report["card"]["preset"].endswith(f"interpolations=2, posteriors={limit}")
    assert report["metrics"]["mi"]["note"].startswith(f"N = {measured}, ")
    assert report["metrics"]["nll_3"]["value"] > 0
    assert report["card"]["sentences"] == 8


def test_probes_need_labels(finished, capsys):
    assert main([f"--workdir={finished}", "--mode=probe"]) == 2
    assert "the test split has no labels; train with data.label set" in capsys.readouterr().err


def test_text_modes(finished, capsys):
    workdir = f"--workdir={finished}"
    assert main([workdir, "--mode=sample", "--seed=-1"]) == 2
    assert "seed" in capsys.readouterr().err
    assert main([workdir, "--mode=sample", "--n=3", "--seed=5"]) == 0
    sampled = capsys.readouterr().out
    assert sampled.count("\n") == 3
    assert main([workdir, "--mode=sample", "--n=3", "--seed=5"]) == 0
    assert capsys.readouterr().out == sampled
    assert main([workdir, "--mode=reconstruct", "--text=a man is sleeping"]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    ends = ("--text=a man is sleeping", "--text=two girls were dancing")
    assert main([workdir, "--mode=interpolate", "--steps=4", *ends]) == 0
    assert capsys.readouterr().out.count("\n") == 4


def test_loaded_run(finished):
    vae = jvae.load(finished)
    texts = [s.text for s in grammar.corpus("test", 9)]
    z_egz = vae.encode(texts)
    assert z_egz.shape == (9, 1, 4)
    alone = np.concatenate([vae.encode([text]) for text in texts])
    np.testing.assert_allclose(z_egz, alone, atol=1e-5)
    assert vae.decode(z_egz) == vae.reconstruct(texts)
    assert vae.interpolate(texts[0], texts[1], 3)[0] == vae.decode(z_egz[:1])[0]
    with pytest.raises(jvae.errors.DataError, match="sentence 2 is empty"):
        vae.encode(["a man is sleeping", "  "])
    with pytest.raises(ValueError, match=r"expected \(n, 1, 4\)"):
        vae.decode(z_egz[:, 0])


def test_an_exported_run_loads_again(finished, tmp_path):
    jvae.export(finished, tmp_path / "model")
    texts = [s.text for s in grammar.corpus("test", 3)]
    run_, exported = jvae.load(finished), jvae.load(tmp_path / "model")
    np.testing.assert_array_equal(run_.encode(texts), exported.encode(texts))
    assert run_.sample(3, seed=2) == exported.sample(3, seed=2)
    assert "exact_match" in (tmp_path / "model" / "README.md").read_text()
    with pytest.raises(jvae.errors.WeightsError, match="already exists"):
        jvae.export(finished, tmp_path / "model")


def test_held_out_sentences_are_not_trained_on(tmp_path, command):
    config, _ = configs.from_argv(command(tmp_path / "run")[:-1])
    splits, exact = run_data.read_splits(config)
    places = {
        split: {located.line for located in lines.examples() if lines.keep_d[located.document]}
        for split, lines in splits.items()
    }
    assert {split: len(lines) for split, lines in places.items()} == dict(
        train=361, valid=20, test=19
    )
    assert set.union(*places.values()) == set(range(1, 401)) and exact == {}


@pytest.mark.parametrize(
    "words, message",
    [
        (["--config=optimus:tinny"], "unknown preset 'tinny'"),
        (["--config=tasks:fusion,stack=t5"], "ablate and stack apply only to paraphrase, "),
        (["--config=tasks:encoder,ablate=shared"], "ablate and stack apply only to paraphrase, "),
        (["--config=optimus", "--config.optim.lrr=1"], "lr"),
        (["--config=optimus", "--config.optim.lr=fast"], "config.optim.lr=fast"),
        (["--config=optimus", "--mode=dance"], "mode"),
        (["--config=optimus", "train"], "unexpected argument 'train'"),
        (["--confg=optimus"], "confg"),
        ([], "no config"),
        (["--mode=sample", "--workdir=/nowhere"], "no such folder"),
        (["--config=optimus", "--config.data.train=/no/such.txt"], "/no/such.txt"),
        (["--config=optimus", "--config.model.family=optimist"], "Known: adavae, della"),
        (
            ["--config=optimus", "--config.model.pool=lost"],
            "model.pool='lost': expected one of cls, mean",
        ),
        (["--config=optimus", "--config.objective.free_bits=x"], "free_bits"),
        (["--config=optimus", "--config.data.dec_row=8"], "data.dec_row is 8"),
        (["--config=optimus", "--config.model.decoder.heads=3"], "heads"),
        (["--config=optimus", "--config.data.batch_rows=3", "--config.mesh.data=2"], "batch_rows"),
    ],
)
def test_mistakes_get_one_message(words, message, corpus, capsys, tmp_path):
    more = []
    if "--config=optimus" in words:
        more = [f"--workdir={tmp_path / 'run'}", "--config.mesh.data=1"]
        more.append(f"--config.data.train={corpus}")
    assert main([*words[:1], *more, *words[1:]]) == 2
    assert not (tmp_path / "run").exists()
    error = capsys.readouterr().err
    assert error.count("error: ") == 1 and message in error and "Traceback" not in error


def test_another_config_in_the_same_folder(finished, capsys, command):
    assert main(command(finished, "--config.optim.lr=0.5")) == 2
    assert "optim.lr: 0.003 -> 0.5" in capsys.readouterr().err
    # What acts after training may change.
    assert main(command(finished, "--config.decode.temperature=0.7")) == 0


@pytest.mark.slow
def test_a_run_that_diverges_before_its_first_checkpoint_claims_nothing(tmp_path, capsys, command):
    folder = tmp_path / "run"
    hot = ("--config.optim.lr=10", "--config.optim.clip=none", "--config.optim.schedule=constant")
    assert main(command(folder, *hot)) == 2
    error = capsys.readouterr().err
    assert "not finite between steps" in error and "lower" in error.lower()
    assert "no checkpoint was saved yet, so the same --workdir can be started over" in error
    assert not (folder / "config.json").exists() and not (folder / "tokenizers").exists()


def start(words: list[str]) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "jvae.main", *words],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def state_of(folder: Path) -> dict[str, bytes]:
    """Every array of the newest checkpoint, and the metrics that are not times."""
    from jvae.runs.checkpoint import Checkpoints
    from jvae.tree import named_leaves

    with Checkpoints(folder, read_only=True) as ckpts, warnings.catch_warnings():
        # Without shardings Orbax restores as saved, which is what is wanted here, and warns.
        warnings.filterwarnings("ignore", message="Sharding info not provided")
        newest = ckpts.latest()
        stored = ckpts._managers["last"].restore(newest)["state"]
        meta = ckpts.meta(newest)
    arrays = {name: np.asarray(leaf).tobytes() for name, leaf in named_leaves(stored).items()}
    arrays["position"] = str(meta["position"]).encode()
    lines = [
        {k: v for k, v in line.items() if "/time/" not in k}
        for line in metrics.read_lines(folder / "metrics.jsonl")
    ]
    return arrays | {"metrics": json.dumps(lines).encode()}


def test_kill_and_resume_is_bit_exact(command, untouched, tmp_path, caplog):
    """SIGKILL as soon as step 9 of 12 is logged, then the same command again, in another process.

    The second save waits for the first, so that by then step 4 at least is whole.
    """
    broken = tmp_path / "broken"
    process = start(command(broken))
    log = broken / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and log.read_text().count("train/loss") >= 5:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    _, error = process.communicate()
    assert process.returncode == -signal.SIGKILL, error
    assert "allocator: " in error
    caplog.set_level(logging.INFO)
    assert main(command(broken)) == 0
    assert any(f"resumed at step {step} of 12" in caplog.messages for step in (4, 8))

    expected, actual = state_of(untouched), state_of(broken)
    assert expected.keys() == actual.keys() and len(expected) > 50
    assert [name for name in expected if expected[name] != actual[name]] == []
