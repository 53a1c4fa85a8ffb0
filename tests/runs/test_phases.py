"""Phases of one run: shares and overrides, ends by patience, and resuming in each of them."""

from pathlib import Path

import pytest

from jvae import config as configs
from jvae.data import grammar
from jvae.errors import ConfigError
from jvae.runs import metrics, phases
from jvae.runs.checkpoint import Checkpoints
from jvae.runs.metrics import read_lines
from jvae.runs.phases import Phase, PhaseProgress
from jvae.training import loop

CONFIG = """
from ml_collections import ConfigDict
from configs_here import optimus


def get_config(arg):
    c = optimus.get_config("tiny")
    for side in ("encoder", "decoder"):
        c.model[side].update(dict(layers=1, unroll=1, width=8, heads=2, mlp=8, positions=32))
    c.model.latent = 2
    c.mesh.data = 1
    c.optim.warmup_steps = 1
    c.data.update(row_tokens=32, batch_rows=4)
    c.train.update(dict(steps=6, log_every=1, check_every=1, tensorboard=False))
    c.evals.update(dict(samples=1, sentences=2, generate=2, interpolations=1))
    c.phases = ConfigDict(dict(
        stage0=dict(share=0.3, objective=dict(z="zero"), optim=dict(trainable=(("^decoder/",),))),
        stage1=dict(share=0.4, optim=dict(trainable=(("^(encoder|posterior)/",),)),
                    objective=dict(beta=dict(kind="constant", stop=0.5))),
        stage2=dict(share=0.3),
    ))
    return c
"""


def _config(**sections):
    c = configs.load("optimus:tiny").copy_and_resolve_references()
    with c.unlocked():
        c.train.steps = 10
        c.phases = sections
    return c


def test_phases_override_their_sections_and_share_the_steps():
    c = _config(
        a=dict(share=0.25, optim=dict(lr=0.5)),
        b=dict(share=0.75, patience=3, objective=dict(beta=dict(stop=0.1))),
    )
    a, b = phases.resolve(c)
    assert (a.name, a.steps, a.patience, a.optim.lr) == ("a", 2, 0, 0.5)
    assert (b.name, b.steps, b.patience, b.optim.lr) == ("b", 8, 3, c.optim.lr)
    assert b.objective.beta.stop == 0.1 and b.objective.beta.kind == c.objective.beta.kind
    assert a.objective.to_dict() == c.objective.to_dict()
    (whole,) = phases.resolve(_config())
    assert whole.steps == 10 and whole.name == ""


def test_a_warm_up_longer_than_its_phase_is_clipped_with_a_note():
    c = _config(a=dict(share=0.3), b=dict(share=0.7, optim=dict(warmup_steps=7)))
    assert c.optim.warmup_steps == 100
    a, b = phases.resolve(c)
    assert (a.steps, a.optim.warmup_steps, b.steps, b.optim.warmup_steps) == (3, 3, 7, 7)
    (note,) = a.notes
    assert note == "optim.warmup_steps=100 is longer than a; it warms up for all of its 3 steps"
    assert not b.notes


@pytest.mark.parametrize(
    "sections, message",
    [
        (dict(a=dict(share=0.5)), "add up to 0.5; expected 1"),
        (dict(a=dict(share=0.01), b=dict(share=0.99)), "phases.a.share leaves it no step"),
        (
            dict(a=dict(share=1.0, steps=3)),
            "phases.a.steps: unknown key; a phase may set share, patience",
        ),
        (dict(a=dict(share=1.0, optim=dict(rate=1))), "phases.a.optim.rate: no such key"),
        (dict(a=dict(share=1.0, objective=dict(beta=dict(end=1)))), "phases.a.objective.beta.end"),
    ],
)
def test_mistakes_are_named(sections, message):
    with pytest.raises(ConfigError, match=message):
        phases.resolve(_config(**sections))


def test_a_phase_ends_at_its_steps_or_when_the_loss_stalls():
    c = _config()
    phase = Phase("", 10, 2, c.objective, c.optim, c.noise)
    at = PhaseProgress(begin=4)
    for done, loss in ((6, 3.0), (8, 2.0), (10, 2.0)):
        at = at.checked(phase, done, loss)
        assert not at.over
    assert at.best == 2.0 and at.stalled == 1
    assert at.checked(phase, 12, 2.5).over and not at.checked(phase, 12, 1.0).over
    assert at.checked(phase, 14, 1.0).over
    assert not PhaseProgress().checked(phase._replace(patience=0), 2, float("nan")).over


def test_no_check_counts_before_the_objective_is_final():
    sections = dict(
        a=dict(share=0.5, patience=2, objective=dict(z="zero")),  # no KL, so no schedule of it
        b=dict(share=0.5, patience=2, optim=dict(trainable=(("^decoder/", None, None, "9/10"),))),
    )
    c = _config(**sections)
    with c.unlocked():
        c.train.steps = 200
        c.objective.beta.update(kind="cyclic_zero_linear", ratio_zero=0.2, ratio_increase=0.4)
    a, b = phases.resolve(c)
    assert (a.final, b.final) == (0, 90)
    (whole,) = phases.resolve(_config())
    assert whole.final == 6
    # Losses that rise while beta does, as they must.
    at = PhaseProgress(begin=100)
    for done, loss in ((120, 5.0), (140, 6.0), (160, 7.0), (180, 8.0)):
        at = at.checked(b, done, loss)
        assert (at.best, at.stalled, at.over) == (None, 0, False)
    for done, loss, stalled in ((190, 9.0, 0), (192, 9.5, 1), (194, 9.5, 2)):
        at = at.checked(b, done, loss)
        assert at.best == 9.0 and at.stalled == stalled
    assert at.over
    assert PhaseProgress(begin=100).checked(b._replace(final=100), 200, 1.0).over  # by its steps


def test_checks_compare_the_bound_under_the_final_weight():
    c = _config()
    with c.unlocked():
        c.objective.beta.update(stop=0.5)
        c.objective.update(free_bits="dim_max", free_bits_nats=4.0)  # in the loss alone
    (phase,) = phases.resolve(c)
    assert phase.bound(30.0, 8.0) == 34.0
    at = PhaseProgress().checked(phase, 10, float("nan"))
    assert at.best is None and at.stalled == 1
    at = at.checked(phase, 10, 34.0, (2.0, 3.0)).checked(phase, 10, 35.0, (1.0, 3.5))
    assert (at.best, at.stalled, at.per_token) == (34.0, 1, (2.0, 3.0))
    assert not at.counts(phase, 5) and at.counts(phase, 6)
    assert at.checked(phase, 5, 1.0, (1.0, 1.0)).per_token is None


def _meta_of(config, done: int, **at) -> dict:
    return dict(config=configs.to_json(config), step=done, phase=PhaseProgress(**at)._asdict())


def test_other_steps_move_the_ends_of_phases_that_have_not_passed():
    def of(steps, **more):
        c = _config(a=dict(share=0.5), b=dict(share=0.5))
        with c.unlocked():
            c.train.steps = steps
        return c

    # In the first phase: both ends move.
    meta = _meta_of(of(100), 20)
    assert phases.replan(of(100), meta) == PhaseProgress()
    at = phases.replan(of(200), meta)
    assert at == PhaseProgress(steps=100)
    plan = phases.resolve(of(200))
    assert phases.at_place(plan, at).steps == 100
    assert phases.at_place(plan, at.following(100)).steps == 100
    # In the second one, twice: the first stays as it was.
    at = phases.replan(of(200), _meta_of(of(100), 60, index=1, begin=50, stalled=3))
    assert at == PhaseProgress(1, 50, steps=150)
    at = phases.replan(of(240), _meta_of(of(200), 60, **at._asdict()))
    assert at == PhaseProgress(1, 50, steps=190)
    # After patience ended the first phase ten steps early, the run is as much shorter.
    at = phases.replan(of(200), _meta_of(of(100), 60, index=1, begin=40))
    assert at.begin + at.steps == 190
    # A finished run can be extended, and a run may end at its step, but not earlier.
    ended = _meta_of(of(100), 100, index=1, begin=50, stalled=3, best=2.0, over=True)
    assert phases.finished(of(100), ended) and not phases.finished(of(102), ended)
    assert phases.replan(of(102), ended) == PhaseProgress(1, 50, 2.0, steps=52)
    here = _meta_of(of(100), 60, index=1, begin=50)
    assert phases.finished(of(60), here) and not phases.finished(of(62), here)
    with pytest.raises(ConfigError, match="steps is 58, so phase b ends at step 58, but 60 steps"):
        phases.replan(of(58), here)


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Trains, in this process, a run of three phases in a folder of that name."""
    root = tmp_path_factory.mktemp("phases")
    where = repr(str(configs.shipped_dir().parent))
    lines = [f"{s.text}\n" for s in grammar.corpus("train", 200)]
    (root / "mine.txt").write_text("".join(lines))
    text = CONFIG.replace(
        "from configs_here import optimus",
        f"import sys\nsys.path.insert(0, {where})\nfrom configs import optimus",
    )
    (root / "mine.py").write_text(text)

    def run(name: str) -> Path:
        folder = root / name
        config = configs.load(str(root / "mine.py"))
        values = [f"data.train={root / 'mine.txt'}", "data.tokenizer_kind=word"]
        config = configs.apply_overrides(config, values)
        loop.train(config, folder)
        return folder

    return run


def _meta(folder: Path):
    with Checkpoints(folder, read_only=True) as ckpts:
        meta = ckpts.meta()
    return meta


def _best(folder: Path) -> int | None:
    with Checkpoints(folder, read_only=True) as ckpts:
        return ckpts.best()


@pytest.mark.slow
def test_resuming_in_every_phase_changes_nothing(command, monkeypatch):
    whole = command("whole")
    steps = [line for line in read_lines(whole / "metrics.jsonl") if "train/loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert [line["train/beta"] for line in steps][2:4] == [0.5, 0.5]
    assert steps[0]["train/kl"] == 0.0 and steps[2]["train/kl"] > 0.0  # z = 0, then sampled

    progress, reached = metrics.Writer.progress, []
    for last in (4, 6):

        def stop(self, done, last=last):
            if done == last:
                raise KeyboardInterrupt
            progress(self, done)

        monkeypatch.setattr(metrics.Writer, "progress", stop)
        with pytest.raises(KeyboardInterrupt):
            command("broken")
        reached.append(_meta(whole.with_name("broken")))
        # The objective is final with the last step: a loss from before it is no one's best.
        assert _best(whole.with_name("broken")) is None
    assert [meta["step"] for meta in reached] == [3, 5]
    assert [(meta["phase"]["index"], meta["phase"]["over"]) for meta in reached] == [
        (1, False),
        (2, False),
    ]
    monkeypatch.setattr(metrics.Writer, "progress", progress)
    broken = command("broken")

    def quiet(folder):
        return [
            {k: v for k, v in line.items() if not k.startswith("train/time")}
            for line in read_lines(folder / "metrics.jsonl")
        ]

    assert _best(broken) == _best(whole) == 6
    assert quiet(broken) == quiet(whole)
    a, b = _meta(whole), _meta(broken)
    assert a["checksums"] == b["checksums"] and a["phase"] == b["phase"]
    assert a["position"] == b["position"]
