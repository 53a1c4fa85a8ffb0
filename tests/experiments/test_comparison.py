"""The comparison: equal terms, commands, resuming, and the tables made of rows."""

import gzip
import json
import shlex
import signal
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jvae import config as configs
from jvae.api import Batch, Side
from jvae.data import grammar, tokenizers
from jvae.errors import ConfigError
from jvae.evals.settings import EvalConfig
from jvae.experiments import comparison, data, entries, learned_priors, pictures, plan, tables
from jvae.experiments import rows as comparison_rows
from jvae.experiments.entries import BUDGETS, DEFAULT, ENTRIES
from jvae.experiments.results import read_rows
from jvae.pretrained import files
from jvae.runs import build
from jvae.runs.data import ROLES
from jvae.training.preemption import CODE
from jvae.tree import named_leaves

RESULTS = Path(__file__).parents[2] / "RESULTS.md"
# A budget so small that a run is a matter of compiling.
TINY = entries.Budget(
    words=300,
    update=4,
    seeds=(0,),
    vocab=300,
    layers=2,
    width=16,
    latent=4,
    lines=8,
    evals=dict(samples=2, sentences=4, generate=4, interpolations=1),
    checks=2,
    row_tokens=32,
    overrides={"mesh.data": 1, "optim.warmup_steps": 0},
)


@pytest.fixture
def folder(tmp_path):
    """A data set of 60 sentences, its training file compressed."""
    source = tmp_path / "corpus"
    source.mkdir()
    for split, count in (("train", 60), ("valid", 12), ("test", 12)):
        text = "".join(f"{sentence.text}\n" for sentence in grammar.corpus(split, count))
        if split == "train":
            with gzip.open(source / "train.txt.gz", "wt", encoding="utf-8") as file:
                file.write(text)
        else:
            (source / f"{split}.txt").write_text(text)
    return source


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(BUDGETS, "tiny", TINY)
    plan.sizes.cache_clear()


def arguments(tmp_path, folder, *words):
    out, rows = f"--out={tmp_path / 'out'}", f"--rows={tmp_path / 'rows.jsonl'}"
    return comparison._arguments([f"--data=toy={folder}", "--budget=tiny", out, rows, *words])


# --- equal terms ----------------------------------------------------------------------------------


SCRATCH = tuple(name for name, entry in ENTRIES.items() if not entry.published)


@pytest.mark.slow
@pytest.mark.parametrize(
    "entries, names", [(4_000, SCRATCH), (10_002, ("lm", "lstm_vae", "optimus", "sri"))]
)
def test_models_have_as_many_parameters_that_compute(entries, names):
    actual = {}
    for name in names:
        entry = ENTRIES[name]
        size = plan.sizes(name, "cpu", entries)
        actual[name], total = plan.count(plan.sized(entry, BUDGETS["cpu"], size), entries)
        assert actual[name] <= total
    assert {name: abs(n / actual["lm"] - 1) < 0.1 for name, n in actual.items()} == dict.fromkeys(
        actual, True
    )


@pytest.mark.slow
def test_what_computes_is_told_by_its_path():
    def leaves(spec):
        config = configs.load(spec)
        for side in ("encoder", "decoder"):
            if side in config.model:
                config = configs.apply_overrides(config, [f"model.{side}.vocab=300"])
        tree = jax.eval_shape(build.build_model(config).init, jax.random.key(0))
        return {name for name in named_leaves(tree) if not plan.computing(name)}

    positions = {f"{side}/embed/position/table" for side in ("encoder", "decoder")}
    embeddings = {"encoder/embed/token/table", "encoder/embed/type/table"}
    assert leaves("optimus") == positions | embeddings
    assert leaves("lm") == leaves("della") == leaves("adavae") == {"decoder/embed/position/table"}
    assert leaves("t5_vae") == set()  # one table for both stacks and the output
    assert leaves("lstm_vae") == {"encoder/embed/table", "decoder/embed/table"}
    assert leaves("sri") == leaves("lm:lstm") == {"decoder/embed/table"}


def test_a_size_that_cannot_be_met_is_an_error(monkeypatch, tiny):
    wide = TINY._replace(width=512, layers=8)
    monkeypatch.setitem(BUDGETS, "tiny", wide)
    real = entries._optimus
    entry = ENTRIES["optimus"]._replace(values=lambda b: real(b) | {"model.latent": 200_000})
    monkeypatch.setitem(ENTRIES, "optimus", entry)
    with pytest.raises(ConfigError, match="no size comes within 10 %"):
        plan.sizes("optimus", "tiny", 300)


def test_files_are_the_same_lines_for_all(tmp_path, folder, tiny):
    dataset = data.prepare("toy", folder, TINY, tmp_path / "out")
    test = (tmp_path / "out/test.txt").read_text().splitlines()
    lines = (folder / "test.txt").read_text().splitlines()
    assert len(test) == 8 and [line for line in lines if line in test] == test
    assert (dataset.sentences, dataset.kind, dataset.entries) == (60, "bpe", 300)
    assert 1 <= dataset.per_row <= 16
    again = data.prepare("toy", folder, TINY, tmp_path / "out")
    assert again == dataset
    (folder / "test.txt").write_text("another text\n")
    with pytest.raises(ConfigError, match="prepared from other files"):
        data.prepare("toy", folder, TINY, tmp_path / "out")
    (folder / "valid.txt").unlink()
    with pytest.raises(ConfigError, match="no valid.txt or valid.txt.gz"):
        data.prepare("toy", folder, TINY, tmp_path / "other")


def test_a_closed_text_is_read_by_words(tmp_path, folder):
    for split in ("valid", "test", "train"):
        (folder / f"{split}.txt").write_text("the <unk> sat\non a <unk>\n" * 10)
    dataset = data.prepare("closed", folder, TINY, tmp_path / "out")
    assert dataset.kind == "word"
    tokenizer = tokenizers.load(dataset.folder / "tokenizer", "decoder")
    (ids,) = tokenizer.encode_batch(["the <unk> sat"])
    assert len(ids) == 5 and tokenizer.decode(ids) == "the <unk> sat"


def test_labels_are_kept_apart_from_the_text(tmp_path, folder, tiny):
    labelled = tmp_path / "labelled"
    labelled.mkdir()
    for split in ("train", "valid", "test"):
        lines = data.read_lines(folder, split).lines
        text = "".join(f"{i % 2}\t{line}\n" for i, line in enumerate(lines))
        (labelled / f"{split}.tsv").write_text(text)
    dataset = data.prepare("toy", labelled, TINY, tmp_path / "with")
    plain = data.prepare("toy", folder, TINY, tmp_path / "without")
    assert dataset.labelled and not plain.labelled
    assert dataset.mean_words == plain.mean_words and dataset.per_row == plain.per_row
    assert dataset.files["tokenizer"] == plain.files["tokenizer"]
    flags = dataset.flags()
    assert (flags["data.text"], flags["data.label"]) == ("1", "0")
    assert str(flags["data.test"]).endswith("test.tsv") and "data.label" not in plain.flags()
    jobs = comparison.plan(arguments(tmp_path, labelled, "--models=lm,optimus"))
    assert [len(job.steps) for job in jobs] == [1, 2]  # a language model has nothing to probe
    assert jobs[1].steps[1].words == [f"--workdir={jobs[1].folder}", "--mode=probe"]
    (labelled / "test.tsv").rename(labelled / "test.txt")
    with pytest.raises(ConfigError, match="some splits are .tsv and others .txt"):
        data.prepare("toy", labelled, TINY, tmp_path / "mixed")


def published_decoder(path):
    """A folder with a tokenizer and weights; only what `trim` reads."""
    tokenizers.train_bpe(["the dog sat on the mat", "unused words of other texts"], 290).save(path)
    rows = tokenizers.load(path, "decoder").vocab_size
    (path / "config.json").write_text(json.dumps(dict(model_type="llama", vocab_size=rows)))
    arrays = {"model.embed_tokens.weight": np.zeros((rows, 2), np.float32)}
    files.write_safetensors(path / files.SAFETENSORS, arrays, {})
    return path


def test_published_weights_are_trimmed_and_named_without_their_place(tmp_path, folder, tiny):
    models = "--models=smollm2_lm,optimus_smollm2,adavae_smollm2"
    with pytest.raises(ConfigError, match="--encoder=FOLDER and --decoder=FOLDER"):
        comparison.plan(arguments(tmp_path, folder, models))
    decoder = published_decoder(tmp_path / "a decoder")
    encoder = tmp_path / "an encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text("{}")
    flags = (models, f"--encoder={encoder}", f"--decoder={decoder}")
    jobs = comparison.plan(arguments(tmp_path, folder, *flags))
    commands = {job.entry: job.command(tmp_path / "out") for job in jobs}
    folder_flag = "--config.init.{0}=runs/fair/tiny/toy/{0}"
    roles = {
        name: [r for r in ROLES if folder_flag.format(r) in text] for name, text in commands.items()
    }
    assert roles == dict(
        smollm2_lm=["decoder"], optimus_smollm2=["encoder", "decoder"], adavae_smollm2=["decoder"]
    )
    assert not any(str(tmp_path) in text for text in commands.values())
    rows = json.loads((jobs[0].folder.parent / "decoder/config.json").read_text())["vocab_size"]
    assert rows < tokenizers.load(decoder, "decoder").vocab_size
    assert comparison.plan(arguments(tmp_path, folder, *flags)) == jobs

    # Other weights are other runs.
    (encoder / "config.json").write_text('{"other": 1}')
    with pytest.raises(ConfigError, match="other published weights than those of --encoder"):
        comparison.plan(arguments(tmp_path, folder, *flags))
    (jobs[0].folder.parent / data.PUBLISHED).unlink()
    others = comparison.plan(arguments(tmp_path, folder, *flags))
    changed = {job.entry for job, other in zip(jobs, others, strict=True) if job != other}
    assert changed == {"optimus_smollm2"}


def test_an_interrupted_trim_is_repeated(tmp_path, folder, tiny, monkeypatch):
    decoder = published_decoder(tmp_path / "decoder")
    flags = ("--models=smollm2_lm", f"--encoder={decoder}", f"--decoder={decoder}")
    trim = data.trim.trim

    def stopped(source, target, train):
        target.mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(data.trim, "trim", stopped)
        comparison.plan(arguments(tmp_path, folder, *flags))
    assert data.trim.trim is trim
    (job,) = comparison.plan(arguments(tmp_path, folder, *flags))
    assert (job.folder.parent / "decoder" / files.SAFETENSORS).is_file()
    assert {path.name for path in job.folder.parent.iterdir() if path.is_dir()} == {
        *("decoder", "encoder", "tokenizer")
    }


# --- commands -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_commands_are_what_the_command_line_reads(tmp_path, folder, tiny):
    jobs = comparison.plan(arguments(tmp_path, folder, "--sweep"))
    assert [job.entry for job in jobs if not job.point] == list(DEFAULT)
    assert len({job.folder for job in jobs}) == len(jobs)
    swept = [(job.entry, job.point) for job in jobs if job.point]
    assert ("della", "objective.beta.stop=1") not in swept  # its preset: the table's own run
    assert ("optimus", "objective.beta.stop=1") in swept
    assert [point for name, point in swept if name == "sri"] == [
        f"model.chain.temperature={value}" for value in ("0.05", "0.5", "1")
    ]
    seen = {}
    for job in jobs:
        python, *words = shlex.split(job.command())
        assert [python, *words[:2]] == ["python", "-m", "jvae.main"]
        config, rest = configs.from_argv(words[2:])
        assert rest == [f"--workdir={job.folder}"] and config is not None
        assert config.data.encoder_tokenizer == config.data.decoder_tokenizer
        assert config.evals.samples == 2 and config.seed == 0
        update = config.data.batch_rows
        if config.data.packing == "pack":
            update *= data.prepare("toy", folder, TINY, job.folder.parent).per_row
        seen[job.folder] = config.train.steps * update
        if job.point:
            key, _, value = job.point.partition("=")
            assert configs.flatten(config)[key] == float(value)
    most, least = max(seen.values()), min(seen.values())
    assert most / least < 1.1  # whole updates; a real budget has hundreds of them


def test_a_language_model_is_not_asked_to_interpolate(tmp_path, folder, tiny):
    jobs = comparison.plan(arguments(tmp_path, folder, "--models=lm,lstm_lm,optimus"))
    asked = [any("evals.interpolations" in word for word in job.words) for job in jobs]
    assert asked == [False, False, True]


def test_stored_commands_name_no_machine(tmp_path, folder, tiny):
    job = comparison.plan(arguments(tmp_path, folder, "--models=lm"))[0]
    there = comparison.plan(
        comparison._arguments(
            [f"--data=toy={folder}", "--budget=tiny", f"--out={tmp_path / 'x'}", "--models=lm"]
        )
    )[0]
    assert str(tmp_path) in job.command() and str(tmp_path) not in job.command(tmp_path / "out")
    assert job.command(tmp_path / "out") == there.command(tmp_path / "x")
    assert job.fingerprint == there.fingerprint


def test_the_name_of_the_evaluation_changes_no_row(tmp_path, folder, monkeypatch, tiny):
    def planned(**evals):
        monkeypatch.setitem(BUDGETS, "tiny", TINY._replace(evals=evals))
        return comparison.plan(arguments(tmp_path, folder, "--models=lm"))[0]

    sizes = dict(samples=100, sentences=250, generate=500, interpolations=10)
    plain, named = planned(**sizes), planned(preset="comparison")
    assert named.fingerprint == plain.fingerprint and named.folder == plain.folder
    assert "--config.evals.preset=comparison" in named.words
    assert not [word for word in named.words if "evals.samples" in word]
    more = planned(preset="comparison", sentences=8)
    assert more.fingerprint == planned(**sizes | dict(sentences=8)).fingerprint
    assert more.fingerprint != plain.fingerprint


def test_stored_rows_were_measured_by_the_preset_of_their_budget():
    rows = read_rows(comparison_rows.ROWS)
    assert {row["budget"] for row in rows} == {"cpu-short", "laptop"}
    for row in rows:
        preset = EvalConfig(**BUDGETS[row["budget"]].evals)
        assert preset.label == "comparison"
        config, _ = configs.from_argv(shlex.split(row["command"])[3:])
        stored = configs.dataclass_from(EvalConfig, config.evals, "evals")
        assert stored.sizes(500) == preset.sizes(500), row["command"]
        assert (row["k"], row["evaluated"]) == preset.sizes(500)[:2]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--budget=cheap", "--data=a=b"], "expected one of cpu-short, cpu"),
        (["--models=gpt", "--data=a=b"], "--models=gpt: expected some of lm"),
        (["--data=snli"], "write --data=NAME=FOLDER"),
        (["--priors=flo", "--data=a=b"], "did you mean 'flow'"),
        (["--seeds=0,x", "--data=a=b"], "--seeds=0,x: expected numbers"),
        ([], "give --data=NAME=FOLDER"),
    ],
)
def test_mistakes_are_one_message(words, message, capsys):
    assert comparison.main(words) == 2
    assert message in capsys.readouterr().err


# --- resuming -------------------------------------------------------------------------------------


def made_up(entry="optimus", nll=30.0, se=0.2, seed=0, point="", **metrics):
    """A row of a made-up run."""
    latent = entry not in ("lm", "lstm_lm")
    expected = {
        "nll_100": nll,
        "neg_elbo": nll + (1.0 if latent else 0.0),
        "rec": nll - 4.0 if latent else nll,
        "kl": 5.0 if latent else None,
        "mi": 4.5 if latent else None,
        "au_0.01": 12 if latent else None,
        "au_0.2": 8 if latent else None,
        "collapsed": False if latent else None,
        "exact_match": 12.5 if latent else None,
        "ppl_w": 15.0,
        "bpc": 1.25,
    } | metrics
    return {
        **dict(budget="cpu", data="snli", entry=entry, seed=seed, point=point),
        **dict(fingerprint="f", command="python -m jvae.main --config=x", commit="abc"),
        **dict(hardware="2 cores", jax="0.0", date="2026-01-01", k=100, evaluated=500),
        **dict(train_s=60.0, eval_s=20.0, sentences_per_s=100.0, flops=2e12, updates=100),
        **dict(params=10, params_all=12, sentences=3_200, weights="step 100", mi_n=1_000),
        **dict(metrics=expected, se={"nll_100": se}, baseline={"au_0.01": 0}, mi_saturated=False),
        **dict(knob=0.8 if entry == "optimus" else None, collapse=[], notes=[]),
        # Two sentences; what the model is above its language model differs by 0.28 on either side.
        **dict(sentence_e=[0, 3], nll_e=[nll - 5 - 0.28 * latent, nll + 5 + 0.28 * latent]),
    }


def finish(job):
    """The files of a finished run, without training it; with a probe of its labels."""
    eval_dir = job.folder / "eval"
    eval_dir.mkdir(parents=True, exist_ok=True)
    report = {
        "card": {
            "commit": "abc",
            "config": {"name": "lm-tiny"},
            "device": {"kind": "cpu", "jax": "0.0"},
            "k": 2,
            "sentences": 4,
            "weights": "step 9",
        },
        "metrics": {"nll_2": {"value": 20.0, "se": 0.5, "note": ""}},
        "time": {},
        "details": {},
        "notes": [],
    }
    (eval_dir / "test.json").write_text(json.dumps(report))
    probe = {"value": 80.0, "se": 2.0, "note": "", "baseline": 60.0}
    (eval_dir / "probe.json").write_text(json.dumps(report | {"metrics": {"probe_label": probe}}))
    (eval_dir / "test.txt").write_text("table\n")
    rows = [json.dumps({"sentence": i, "nll_2": 19.0 + 2 * i}) for i in range(2)]
    (eval_dir / "test.sentences.jsonl").write_text("\n".join(rows) + "\n")
    lap = {"train/loss": 1.0, "train/sentences": 4.0}
    lap |= {f"train/time/{n}": 5.0 for n in ("step_ms", "tokens_per_s", "sentences_per_s")}
    lines = [json.dumps({"step": step} | lap) for step in (6, 10)]
    (job.folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def runs(monkeypatch):
    """Commands that would have been run; each leaves a finished run, or the given exit code."""
    seen, codes, jobs = [], {}, {}

    def start(self, command, log):
        (workdir,) = (word for word in command if word.startswith("--workdir="))
        folder = Path(workdir.removeprefix("--workdir="))
        seen.append(folder)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("what it said\n")
        if code := codes.get(len(seen)):
            return code
        if "--mode=prior" in command:
            kind = command[-1].removeprefix("--prior.kind=")
            nll = {"own": 20.0, "fitted": 19.5, "ceiling": None, "se": 0.1}
            metrics = {"metrics": {"nll_2": nll}}
            (folder / f"eval/prior-{kind}.json").write_text(json.dumps(metrics))
            (folder / f"eval/prior-{kind}.txt").write_text("table\n")
        else:
            finish(jobs[folder])
        return 0

    monkeypatch.setattr(comparison.Runner, "run", start)
    monkeypatch.setattr(comparison.Runner, "listen", lambda self: None)
    monkeypatch.setattr(
        comparison_rows, "cost", lambda folder, steps: comparison_rows.Cost(5, 6, [(10, 1e11)])
    )
    return seen, codes, jobs


@pytest.mark.parametrize("types", [None, np.zeros((2, 8), np.int32)])
def test_the_cost_of_rows_of_other_lengths(types):
    tokens = Side(*(np.zeros((2, 8), np.int32) for _ in range(3)), types)
    batch = Batch(tokens, tokens, None, np.zeros((2, 8), bool), np.zeros(4, np.int32))
    actual = comparison_rows._of(batch, [("enc", 3), ("dec", 5)])
    assert jax.tree.map(np.shape, actual.enc.type_bt) == (None if types is None else (2, 3))
    assert actual.enc.token_bt.shape == (2, 3) and actual.dec.token_bt.shape == (2, 5)
    assert actual.scored_bt.shape == (2, 5) and actual.id_e.shape == (4,) and actual.cond is None


@pytest.mark.slow
def test_what_is_missing_is_run_once(tmp_path, folder, tiny, runs, capsys):
    seen, codes, jobs = runs
    words = [f"--data=toy={folder}", "--budget=tiny", "--models=lm,lstm_lm,della"]
    words += [f"--out={tmp_path / 'out'}", f"--rows={tmp_path / 'rows.jsonl'}"]
    planned = comparison.plan(comparison._arguments(words))
    jobs |= {job.folder: job for job in planned}
    assert comparison.main([*words, "--dry_run"]) == 0 and not seen
    assert capsys.readouterr().out.splitlines() == [job.command() for job in planned]

    codes[2] = 2  # the second fails, the third is stopped
    codes[3] = CODE
    assert comparison.main(words) == CODE
    assert seen == [job.folder for job in planned]
    said = capsys.readouterr()
    assert (
        "failed with 2: what it said" in said.err and "run the same command to resume" in said.err
    )
    assert comparison.main(words) == 0
    assert seen[3:] == [job.folder for job in planned[1:]]
    first = capsys.readouterr().out.partition("###")[2]
    assert comparison.main(words) == 0 and len(seen) == 5
    again = capsys.readouterr().out
    assert again.strip().startswith("###") and again.partition("###")[2] == first
    row = read_rows(tmp_path / "rows.jsonl")[0]
    assert (row["sentences"], row["updates"], row["entry"]) == (40, 10, "lm")

    # Other files are other runs; a finished one without a row is not run again.
    (tmp_path / "rows.jsonl").unlink()
    assert comparison.main(words) == 0 and len(seen) == 5
    assert comparison.missing(planned, tmp_path / "rows.jsonl") == []
    other = planned[0]._replace(fingerprint="another")
    assert comparison.missing([other], tmp_path / "rows.jsonl") == [other]


@pytest.mark.slow
def test_priors_are_fitted_once_to_every_model_with_a_latent(tmp_path, folder, tiny, runs, capsys):
    seen, _, jobs = runs
    words = [f"--data=toy={folder}", "--budget=tiny", "--models=lm,della", "--seeds=3,4"]
    words += [f"--out={tmp_path / 'out'}", f"--rows={tmp_path / 'rows.jsonl'}"]
    planned = comparison.plan(comparison._arguments(words))
    jobs |= {job.folder: job for job in planned}
    assert [(job.entry, job.seed) for job in planned] == [
        (name, seed) for name in ("lm", "della") for seed in (3, 4)
    ]
    assert comparison.main(words) == 0 and len(seen) == 4
    words.append("--priors=gmm,flow")
    assert comparison.main(words) == 0
    assert seen[4:] == [planned[2].folder] * 2
    text = capsys.readouterr().out
    assert "| DELLA | gmm | 19.50 | 0.50 ± 0.10 |" in text and "| DELLA | own | 20.00 | – |" in text
    assert comparison.main(words) == 0 and len(seen) == 6
    # A row from another machine has no run that a prior could be fitted to.
    (tmp_path / "rows_priors.jsonl").unlink()
    planned[2].steps[0].result.unlink()
    assert comparison.main(words) == 0
    assert len(seen) == 9 - 2  # the run; the tables of the priors are still there


def test_a_budget_that_compiles_trains_nothing(tmp_path, folder, monkeypatch, runs, capsys):
    monkeypatch.setitem(BUDGETS, "tiny", TINY._replace(compiled=True))
    plan.sizes.cache_clear()
    seen = []

    def start(self, command, log):
        seen.append(command)
        log.write_text("train step: 5 MiB resident\n")
        return 0

    monkeypatch.setattr(comparison.Runner, "run", start)
    words = [f"--data=toy={folder}", "--budget=tiny", "--models=lm", "--topology=cpu-8"]
    out = [f"--out={tmp_path / 'out'}", f"--rows={tmp_path / 'rows.jsonl'}"]
    assert comparison.main([*words, *out]) == 0
    assert "5 MiB resident" in capsys.readouterr().out
    assert seen[0][-2:] == ["--mode=compile", "--topology=cpu-8"]
    assert not (tmp_path / "rows.jsonl").exists()


def test_signals_reach_the_run(tmp_path):
    runner, log = comparison.Runner(), tmp_path / "run.log"
    program = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(75))\n"
    program += "print('on', flush=True)\ntime.sleep(60)\n"

    def stop():
        while not log.exists() or "on" not in log.read_text():
            time.sleep(0.01)
        runner._heard(signal.SIGTERM, None)

    thread = threading.Thread(target=stop)
    thread.start()
    assert runner.run([sys.executable, "-c", program], log) == CODE and runner.stopped
    thread.join()


# --- tables ---------------------------------------------------------------------------------------


def test_a_new_row_replaces_the_old_one_in_the_order_of_the_table(tmp_path):
    path = tmp_path / "rows.jsonl"
    for row in (made_up("sri"), made_up("lm"), made_up("optimus", 31.0), made_up("optimus", 30.0)):
        comparison_rows.store(row, path)
    rows = read_rows(path)
    assert [row["entry"] for row in rows] == ["lm", "optimus", "sri"]
    assert rows[1]["metrics"]["nll_100"] == 30.0


def cells(text, title):
    line = next(line for line in text.splitlines() if line.startswith(f"| {title} |"))
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_cells_of_one_seed():
    rows = [made_up("lm", 29.0), made_up("optimus")]
    rows[1]["mi_saturated"] = True
    rows[1]["baseline"]["mi"] = 3.25
    text = tables.tables(rows)
    head = cells(text, "model")
    row = dict(zip(head, cells(text, "Optimus"), strict=True))
    assert row["NLL_100"] == "30.00 ± 0.20" and row["MI (baseline)"] == "≥ 4.50 (3.2)"
    assert row["AU (baseline)"] == "12 (0)" and row["collapsed"] == "no"
    assert row["BLEU"] == "not measured" and row["probe"] == "–"
    lm = dict(zip(head, cells(text, "Transformer LM"), strict=True))
    assert lm["KL"] == lm["AU (baseline)"] == lm["collapsed"] == lm["exact match %"] == "–"
    assert "500 test sentences, K = 100; ± standard error" in text
    assert "No row lies below its language model" in text
    assert "No row of the matching language model for: Optimus." in tables.tables(rows[1:])


def test_a_withheld_perplexity_is_a_dash_with_its_reason():
    note = "12 % of the tokens are unknown: perplexity per word is withheld."
    text = tables.tables([made_up("lm", ppl_w=None, bpc=None) | {"notes": [note, "a remark"]}])
    row = dict(zip(cells(text, "model"), cells(text, "Transformer LM"), strict=True))
    assert row["PPL_w"] == row["BPC"] == "–"
    assert f"- Transformer LM: {note}" in text and "a remark" not in text


def test_cells_of_several_seeds():
    rows = [made_up("della", nll, seed=seed) for seed, nll in enumerate((29.0, 30.0, 31.0))]
    rows[2]["metrics"]["collapsed"] = True
    rows[2]["collapse"] = ["no active unit"]
    rows.append(made_up("lm", 29.0))
    text = tables.tables(rows)
    table, seeds = text.split("Mean ± standard deviation over seeds:")
    row = dict(zip(cells(table, "model"), cells(table, "DELLA"), strict=True))
    # Over sentences in one table, over seeds in the other.
    assert row["NLL_100"] == "30.00 ± 0.20" and row["collapsed"] == "**1 of 3**"
    assert "± standard error over sentences; means over seeds." in table
    row = dict(zip(cells(seeds, "model"), cells(seeds, "DELLA"), strict=True))
    assert row["seeds"] == "0, 1, 2" and row["NLL_100"] == "30.00 ± 1.00"
    assert row[tables.OVER] == "–"  # the language model has one seed
    rows += [made_up("lm", nll, seed=seed) for seed, nll in ((1, 29.5), (2, 30.0))]
    text = tables.tables(rows)
    seeds = text.split("Mean ± standard deviation over seeds:")[1]
    row = dict(zip(cells(seeds, "model"), cells(seeds, "DELLA"), strict=True))
    assert row[tables.OVER] == "0.50 ± 0.50"
    assert "Collapsed according to the evaluator, DELLA, seed 2: no active unit." in text


@pytest.mark.parametrize(
    "entry, changes, message",
    [
        ("optimus", {}, None),
        ("lm", {}, None),
        ("optimus", dict(nll=29.5), None),  # within two errors of the floor
        ("optimus", dict(nll=29.3), "0.70 ± 0.28 (paired) below Transformer LM"),
        ("sri", dict(nll=29.3), None),  # the floor of an LSTM is an LSTM
        ("optimus", dict(neg_elbo=29.5), "lies above -ELBO 29.50"),
        ("optimus", dict(mi=5.2), "MI 5.20 exceeds KL 5.00"),
        ("optimus", dict(kl=9.0, mi=7.0), "exceeds ln N = 6.91"),
        ("optimus", dict(nll=31.0, exact=31.5), "below the exact 31.50"),
    ],
)
def test_what_cannot_be_is_told(entry, changes, message):
    rows = [made_up("lm"), made_up("lstm_lm", 28.0)]
    rows = [row for row in rows if row["entry"] != entry] + [made_up(entry, **changes)]
    actual = comparison_rows.faults_of(rows).get(comparison_rows.key(rows[-1]), [])
    assert (actual == []) if message is None else (len(actual) == 1 and message in actual[0])
    text = tables.tables(rows)
    assert ("**Check**" in text) == (message is not None)


def test_a_baseline_of_chains_that_is_not_dead_is_told():
    row = made_up("sri")
    row["baseline"]["au_0.01"] = 2
    assert comparison_rows.faults(row, None) == ["the baseline of AU is 2, expected 0"]


def test_rate_against_distortion(tmp_path):
    rows = [made_up("lm", 29.0), made_up("optimus")]
    assert pictures.rate_distortion(rows) is None and "knob" not in tables.tables(rows)
    for value, kl in ((0.1, 9.0), (1.0, 3.0)):
        row = made_up("optimus", point=f"objective.beta.stop={value:g}", kl=kl)
        rows.append(row | {"knob": value})
    points = tables.swept(rows)["optimus"]
    assert [row["knob"] for row in points] == [0.1, 0.8, 1.0]
    text = tables.tables(rows)
    assert "| Optimus | β = 0.1 | 9.00 | 26.00 |" in text
    # The sweep does not include other seeds.
    assert tables.swept([*rows, made_up("optimus", seed=1)])["optimus"] == points
    drawn = pictures.write(rows, tmp_path / "results")
    (line,) = drawn["rate-distortion"]
    assert line.endswith("(jvae/experiments/figures/rate-distortion-cpu-snli.svg)")
    svg = (tmp_path / "results/rate-distortion-cpu-snli.svg").read_text()
    assert "Optimus" in svg and pictures.write(rows, tmp_path / "results") == drawn
    assert svg == (tmp_path / "results/rate-distortion-cpu-snli.svg").read_text()


def test_the_bound_over_training_compute(tmp_path):
    rows = [made_up("lm", 29.0), made_up("optimus")]
    assert pictures.compute(rows) is None
    rows[1]["curve"] = [[0.5, 60.0], [1.0, 31.0]]
    (line,) = pictures.write(rows, tmp_path)["compute"]
    assert line.startswith("![Validation -ELBO over training compute of Optimus, SNLI")
    assert "Transformer LM" not in (tmp_path / "compute-cpu-snli.svg").read_text()


def test_flops_until_a_step_follow_the_phases():
    cost = comparison_rows.Cost(1, 2, [(10, 2.0), (30, 5.0)])
    small = comparison_rows.Cost(1, 2, [(30, 1.0)])
    assert [cost.until(step) for step in (0, 4, 10, 12, 30, 99)] == [0, 8, 20, 30, 120, 120]
    log = [{"step": step, "valid/neg_elbo": 4.0} for step in (10, 20, 30)]
    log.append({"step": 30, "train/loss": 1.0})
    flops = [round(x * 1e12) for x, _ in comparison_rows._curve(log, cost)]
    assert flops == [70, 120]  # only the last phase
    assert [nats for _, nats in comparison_rows._curve(log, small)] == [4.0] * 3


def test_a_document_is_filled_between_its_marks():
    text = f"a\n<!-- comparison: tables -->\nold\n{tables.END}\nb\n"
    filled = tables.filled(text, {"tables": "new"})
    assert filled == f"a\n<!-- comparison: tables -->\nnew\n{tables.END}\nb\n"
    with pytest.raises(ConfigError, match="chairs"):
        tables.filled(f"<!-- comparison: chairs -->\n{tables.END}", {})
    with pytest.raises(ConfigError, match="without"):
        tables.filled("<!-- comparison: tables -->\nno end", {"tables": ""})


def test_the_results_show_the_rows(tmp_path):
    rows = read_rows(comparison_rows.ROWS)
    priors = read_rows(learned_priors.rows_file(comparison_rows.ROWS))
    parts = comparison.generated(rows, priors, tmp_path / "results")
    for document in (RESULTS, RESULTS.with_name("README.md")):
        text = document.read_text(encoding="utf-8")
        assert tables.BEGIN in text and tables.filled(text, parts) == text


# --- all of it ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("models", [",".join(SCRATCH)])
def test_every_model_gets_a_row(tmp_path, folder, monkeypatch, models, capsys):
    """Runs all entries for a few updates; a minute each on two cores."""
    monkeypatch.setitem(BUDGETS, "tiny", TINY)
    plan.sizes.cache_clear()
    words = [f"--data=toy={folder}", "--budget=tiny", f"--models={models}"]
    words += [f"--out={tmp_path / 'out'}", f"--rows={tmp_path / 'rows.jsonl'}"]
    monkeypatch.setattr(comparison.Runner, "listen", lambda self: None)
    assert comparison.main(words) == 0
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [row["entry"] for row in rows] == models.split(",")
    for row in rows:
        assert row["flops"] > 0 and abs(row["params"] / rows[0]["params"] - 1) < 0.1
        assert row["sentences"] > 0
    first = capsys.readouterr().out.partition("###")[2]
    assert comparison.main(words) == 0
    assert capsys.readouterr().out.partition("###")[2] == first
