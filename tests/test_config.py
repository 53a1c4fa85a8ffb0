import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from ml_collections import ConfigDict, config_dict

import jvae
from jvae import config
from jvae.errors import ConfigError

FILE = """
from . import common
from jvae.config import preset

def get_config(arg):
    name, options = preset(arg, ("tiny", "base"), data="grammar")
    cfg = common.base()
    cfg.preset = name
    cfg.data.path = options["data"]
    return cfg
"""
COMMON = """
from ml_collections import ConfigDict

def base():
    return ConfigDict({"preset": "", "data": {"path": ""}})
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "common.py").write_text(COMMON)
    return tmp_path


@pytest.fixture
def shipped(folder, monkeypatch):
    monkeypatch.setattr(config, "shipped_dir", lambda: folder)
    return folder


def example():
    cfg = ConfigDict(
        {
            "seed": 0,
            "optim": {"lr": 1e-3, "clip": 1.0, "nesterov": False, "betas": (0.9, 0.999)},
            "data": {"path": "grammar", "files": ("a", "b"), "limit": None, "none_yet": ()},
            "empty": {},
        }
    )
    cfg.data.workers = config_dict.placeholder(int)
    cfg.data.double_seed = cfg.get_ref("seed") * 2
    return cfg.lock()


def test_load_by_path_and_default_preset(folder):
    cfg = config.load(str(folder / "mine.py"))
    assert cfg.to_dict() == {"preset": "tiny", "data": {"path": "grammar"}}
    assert cfg.is_locked
    assert config.load(f"{folder}/mine.py:base,data=yelp").data.path == "yelp"
    assert config.load(f"{folder}/mine.py:data=yelp").preset == "tiny"


def test_load_by_name(shipped, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert config.load("mine").preset == "tiny"
    assert config.load("mine:base").preset == "base"
    assert config.load("configs/mine.py:base").preset == "base"


def test_same_stem_in_two_folders_and_edits(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "mine.py").write_text(FILE)
    (other / "common.py").write_text(COMMON.replace('"preset": ""', '"preset": "", "more": 1'))
    assert "more" in config.load(str(other / "mine.py"))
    assert "more" not in config.load(str(folder / "mine.py"))
    (folder / "common.py").write_text(COMMON.replace('"preset": ""', '"preset": "", "now": 1'))
    assert "now" in config.load(str(folder / "mine.py"))


@pytest.mark.parametrize("layout", ["checkout", "installed"])
def test_shipped_configs_are_found_in_both_layouts(tmp_path, layout):
    package = tmp_path / "jvae"
    package.mkdir()
    for file in ("__init__.py", "config.py", "errors.py", "fields.py", "renamed.py"):
        (package / file).write_text((Path(jvae.__file__).parent / file).read_text())
    configs = package / "configs" if layout == "installed" else tmp_path / "configs"
    configs.mkdir()
    (configs / "mine.py").write_text(FILE)
    (configs / "common.py").write_text(COMMON)
    code = "from jvae import config; print(config.load('mine:base').preset)"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.stdout == "base\n", run.stderr


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mime", "no config 'mime'; did you mean 'mine'.*one of: mine"),
        ("nowhere/mine.py", "no config 'nowhere/mine.py'"),
        ("mine:bass", "unknown preset 'bass'; did you mean 'base'.*presets: tiny, base"),
        ("mine:base,dta=yelp", "unknown option 'dta=yelp'.*did you mean 'data'"),
        ("mine:base,data", "unknown option 'data'.*options: data=grammar"),
    ],
)
def test_load_says_what_is_wrong(shipped, spec, message):
    with pytest.raises(ConfigError, match=message):
        config.load(spec)


@pytest.mark.parametrize(
    ("body", "message"),
    [("x = 1", "must define get_config"), ("def get_config(arg): return {}", "returned dict")],
)
def test_file_without_a_config(tmp_path, body, message):
    (tmp_path / "broken.py").write_text(textwrap.dedent(body))
    with pytest.raises(ConfigError, match=message):
        config.load(str(tmp_path / "broken.py"))


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("seed=7", 7),
        ("optim.lr=3e-4", 3e-4),
        ("optim.lr=1", 1.0),
        ("optim.clip=none", None),
        ("optim.nesterov=true", True),
        ("optim.nesterov=0", False),
        ("optim.betas=0.5,1", (0.5, 1.0)),
        ("data.path=gs://bucket/a=b:c", "gs://bucket/a=b:c"),
        ("data.path=none", "none"),
        ("data.path=", ""),
        ("data.files=x,y,z", ("x", "y", "z")),
        ("data.files=", ()),
        ("data.limit=10", 10),
        ("data.limit=0.1", 0.1),
        ("data.limit=True", True),
        ("data.limit=some", "some"),
        ("data.limit=None", None),
        ("data.workers=4", 4),
        ("data.none_yet=1,b", (1, "b")),
    ],
)
def test_overrides_take_the_type_of_the_default(override, value):
    cfg = example()
    new = config.apply_overrides(cfg, [f"--config.{override}"])
    key = override.partition("=")[0]
    got = config.flatten(new)[key]
    assert (got, type(got)) == (value, type(value))
    assert new.is_locked
    assert set(config.diff(cfg, new)) <= {key, "data.double_seed"}


def test_overrides_leave_the_original_and_keep_references():
    cfg = example()
    new = config.apply_overrides(cfg, ["--config.seed=7", "config.optim.clip=none"])
    assert (cfg.seed, cfg.optim.clip, new.data.double_seed) == (0, 1.0, 14)
    assert new.optim.clip is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "'optim.lrr'; did you mean 'optim.lr'.*config.optim: betas, clip, lr, nes"),
        ("lr=1", "'lr'; did you mean 'optim.lr'.*keys of config: data, empty, optim, seed"),
        ("optm.lr=1", "did you mean 'optim.lr'"),
        ("seed.x=1", "config.seed is a value, not a section"),
        ("optim=1", "is a section.*optim.betas, optim.clip"),
        ("optim.lr", "has no value"),
        ("optim.lr=fast", r"optim.lr=fast: expected a number \(the default is 0.001\)"),
        ("optim.lr=nan", "expected a finite number"),
        ("seed=1.5", "seed=1.5: expected an integer"),
        ("optim.nesterov=yes", "expected true or false"),
        ("optim.betas=0.5,x", "expected a number"),
        ("data.workers=many", "expected an integer"),
    ],
)
def test_wrong_overrides_say_what_is_wrong(override, message):
    with pytest.raises(ConfigError, match=message):
        config.apply_overrides(example(), [f"--config.{override}"])


def test_command_line(shipped):
    argv = ["prog", "--config=mine:base", "--workdir=w", "--config.data.path", "x", "-v", "file"]
    cfg, rest = config.from_argv(argv)
    assert cfg is not None and (cfg.preset, cfg.data.path) == ("base", "x")
    assert rest == ["prog", "--workdir=w", "-v", "file"]
    assert config.from_argv(["prog", "--configure=1"]) == (None, ["prog", "--configure=1"])
    with pytest.raises(ConfigError, match="without a config"):
        config.from_argv(["prog", "--config.data.path=x"])
    kept = config.apply_overrides(example(), ["seed=7"])
    cfg, rest = config.from_argv(["--workdir=w", "--config.data.path=x"], lambda rest: kept)
    assert cfg is not None and (cfg.seed, cfg.data.path, rest) == (7, "x", ["--workdir=w"])
    with pytest.raises(ConfigError, match="--config.data.path needs a value"):
        config.from_argv(["prog", "--config=mine", "--config.data.path", "--workdir=w"])


def test_json_round_trip_and_fingerprint():
    cfg = example()
    back = config.from_json(config.to_json(cfg))
    assert config.diff(cfg, back) == {}
    assert back.optim.betas == (0.9, 0.999) and back.is_locked
    assert config.fingerprint(cfg) == config.fingerprint(back)
    reordered = ConfigDict(dict(reversed(cfg.to_dict().items())))
    assert config.to_json(reordered) == config.to_json(cfg)
    changed = config.apply_overrides(cfg, ["optim.clip=2"])
    assert config.fingerprint(changed) != config.fingerprint(cfg)


def test_a_run_of_an_older_jvae_gets_the_defaults_of_newer_keys():
    cfg = config.load("t5_vae")  # has phases, where the base has an empty section
    tree = cfg.to_dict()
    assert tree["phases"] and tree["train"].pop("steps_per_call") == 1
    assert tree["noise"].pop("word_dropout") == 0.0
    assert tree.pop("mesh")
    back = config.stored(config.to_json(ConfigDict(tree)))
    assert config.diff(cfg, back) == {} and back.is_locked
    del tree["phases"]
    assert not config.stored(config.to_json(ConfigDict(tree))).phases
    assert config.diff(cfg, config.stored(config.to_json(cfg))) == {}


def test_a_key_that_nothing_reads_any_more_is_left_out():
    cfg = config.load("lm")
    tree = cfg.to_dict()
    tree["train"]["collapse_kl"] = 0.1
    assert config.diff(cfg, config.stored(config.to_json(ConfigDict(tree)))) == {}


def test_diff_names_changed_added_and_removed():
    old = ConfigDict({"a": {"x": 1, "y": 2.0}, "gone": True})
    new = ConfigDict({"a": {"x": 1.0, "y": 2.0}, "new": None})
    assert config.diff(old, new) == {
        "a.x": (1, 1.0),
        "gone": (True, config.ABSENT),
        "new": (config.ABSENT, None),
    }


@pytest.mark.parametrize("value", [float("inf"), len, {1, 2}])
def test_values_that_json_cannot_hold(value):
    with pytest.raises(ConfigError, match=r"config\.a\.b = "):
        config.to_json(ConfigDict({"a": {"b": value}}))


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_stored_config_that_is_none(text):
    with pytest.raises(ConfigError, match="stored config"):
        config.from_json(text)


def test_members_of_the_model_are_chosen_by_flag_with_options_of_their_own():
    tiny = config.load("optimus:tiny")
    changed = config.apply_overrides(
        tiny, ["model.prior.kind=gmm", "model.prior.components=7", "model.posterior.kind=bn"]
    )
    assert changed.model.prior.to_dict() == {"kind": "gmm", "components": 7}
    finer = config.apply_overrides(changed, ["model.posterior.min_kl=2", "model.prior.spread=none"])
    assert finer.model.posterior.min_kl == 2 and finer.model.prior.spread is None
    finer = config.apply_overrides(finer, ["model.posterior.min_kl=2.5"])
    assert finer.model.posterior.min_kl == 2.5
    for key in ("model.priors.kind=gmm", "model.layers=3", "objective.beta.components=7"):
        with pytest.raises(ConfigError, match="unknown config key"):
            config.apply_overrides(tiny, [key])


def test_phases_that_share_a_section_are_set_apart(tmp_path):
    """A file may write one section in several phases."""
    (tmp_path / "mine.py").write_text(
        "from ml_collections import ConfigDict\nfrom jvae import config as configs\n"
        "def get_config(arg):\n    c = configs.load('optimus').unlock()\n"
        "    both = ConfigDict(dict(beta=dict(stop=1.0)))\n"
        "    c.phases = ConfigDict(dict(a=dict(objective=both), b=dict(objective=both)))\n"
        "    return c\n"
    )
    key = "phases.a.objective.beta.stop"
    loaded = config.load(str(tmp_path / "mine.py"))
    assert set(config.diff(loaded, config.apply_overrides(loaded, [f"{key}=0.5"]))) == {key}
    unread = config._import(tmp_path / "mine.py").get_config("")
    assert set(config.diff(unread, config.apply_overrides(unread, [f"{key}=0.5"]))) == {key}
