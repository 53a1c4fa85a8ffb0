"""Old names of config keys: in stored configs silently, elsewhere with one warning each."""

import json
import logging

import pytest
from ml_collections import ConfigDict

from jvae import config, renamed
from jvae.errors import ConfigError
from jvae.fields import fields_of
from jvae.latent.densities import POSTERIORS
from jvae.validation import schema
from jvae.validation.validate import validate

MEMBERS = [POSTERIORS[name] for name in POSTERIORS.names()]
OLD = {"kl_floor": "dim_max", "floor": 2}


@pytest.fixture
def warnings(caplog):
    renamed.warn.cache_clear()
    caplog.set_level(logging.WARNING, "jvae.renamed")
    yield caplog
    renamed.warn.cache_clear()


def with_old_names(spec: str) -> dict:
    """The tree of a shipped config, written before the free bits had their name."""
    tree = config.load(spec).to_dict()
    for section in (tree["objective"], *(p.get("objective", {}) for p in tree["phases"].values())):
        for old, new in (("kl_floor", "free_bits"), ("floor", "free_bits_nats")):
            if new in section:
                section[old] = section.pop(new)
    return tree


def test_a_stored_config_has_the_current_names_also_in_phases(warnings):
    tree = with_old_names("t5_vae:tiny")
    assert any("kl_floor" in phase.get("objective", {}) for phase in tree["phases"].values())
    now = config.load("t5_vae:tiny")
    assert config.diff(config.stored(json.dumps(tree | {"schema": 2})), now) == {}
    assert config.diff(config.from_json(json.dumps(tree | {"schema": 3})), now) == {}
    assert not warnings.messages


def test_an_override_may_use_an_old_name(warnings):
    words = ["--config.objective.kl_floor=dim_max", "config.objective.floor=2", "objective.floor=3"]
    cfg = config.apply_overrides(config.load("optimus:tiny"), words)
    assert (cfg.objective.free_bits, cfg.objective.free_bits_nats) == ("dim_max", 3.0)
    assert "floor" not in cfg.objective
    assert warnings.messages == [
        "objective.kl_floor is now objective.free_bits",
        "objective.floor is now objective.free_bits_nats",
    ]
    with pytest.raises(ConfigError, match=r"config.objective.free_bits_nats=x: expected a number"):
        config.apply_overrides(cfg, ["objective.floor=x"])


@pytest.mark.parametrize(
    ("spec", "key", "meant"),
    [
        ("optimus:tiny", "objective.kl_flor", "objective.free_bits"),
        ("optimus:tiny", "objective.flor", "objective.free_bits_nats"),
        ("sri:tiny", "model.warmup.prior_start", "model.annealing.prior_start"),
        ("t5_vae:tiny", "phases.stage0.objective.kl_flor", "phases.stage0.objective.free_bits"),
    ],
)
def test_a_misspelt_old_name_suggests_the_current_one(spec, key, meant):
    with pytest.raises(ConfigError, match=f"did you mean '{meant}'"):
        config.apply_overrides(config.load(spec), [f"{key}=1"])


def test_the_last_override_wins_under_whichever_name():
    words = [f"model.posterior.{word}" for word in ("least=0.1", "kind=bn", "min_kl=0.2")]
    cfg = config.apply_overrides(config.load("optimus:tiny"), words)
    assert cfg.model.posterior.min_kl == 0.2 and "least" not in cfg.model.posterior


def test_an_override_of_a_phase_may_use_an_old_name(warnings):
    cfg = config.load("t5_vae:tiny")
    (phase, *_) = (
        name for name, own in cfg.phases.items() if "free_bits" in own.get("objective", {})
    )
    cfg = config.apply_overrides(cfg, [f"phases.{phase}.objective.kl_floor=dim_masked"])
    assert cfg.phases[phase].objective.free_bits == "dim_masked"
    start = f"phases.{phase}.objective"
    assert warnings.messages == [f"{start}.kl_floor is now {start}.free_bits"]


@pytest.mark.parametrize("base", ["configs.load('optimus').unlock()", "ConfigDict(dict(tree))"])
def test_a_config_file_may_set_an_old_name(tmp_path, warnings, base):
    """The value set under the old name wins over that of the preset."""
    (tmp_path / "mine.py").write_text(
        "from ml_collections import ConfigDict\nfrom jvae import config as configs\n"
        "tree = configs.load('optimus').to_dict()\ntree['objective'].pop('free_bits')\n"
        f"def get_config(arg):\n    c = {base}\n    c.objective.update({OLD!r})\n    return c\n"
    )
    cfg = config.load(str(tmp_path / "mine.py"))
    assert (cfg.objective.free_bits, cfg.objective.free_bits_nats) == ("dim_max", 2)
    validate(cfg)
    assert len(warnings.messages) == 2


@pytest.mark.parametrize(
    "line",
    [
        "c.objective.kl_floor = 'dim_max'",
        "c.objective['kl_floor'] = 'dim_max'",
        "c.objective.update(kl_floor='dim_max')",
        "print(c.objective.kl_floor)",
    ],
)
def test_a_locked_config_says_what_an_old_name_is_called_now(tmp_path, line):
    path = tmp_path / "mine.py"
    path.write_text(
        "from jvae import config as configs\n"
        f"def get_config(arg):\n    c = configs.load('optimus')\n    {line}\n    return c\n"
    )
    with pytest.raises(
        ConfigError, match=f"^{path}: objective.kl_floor is now objective.free_bits"
    ):
        config.load(str(path))
    path.write_text(path.read_text().replace("kl_floor", "colour"))
    with pytest.raises((AttributeError, KeyError), match="colour"):
        config.load(str(path))


def test_a_config_from_python_may_have_old_names(warnings):
    cfg = config.apply_overrides(ConfigDict(with_old_names("optimus:tiny")), ["seed=3"])
    assert config.diff(config.load("optimus:tiny"), cfg) == {"seed": (0, 3)}
    assert len(warnings.messages) == 2


def shipped_keys() -> set[str]:
    """The keys of all shipped presets, and the options of posteriors that a flag selects."""
    keys = set(config.flatten(config.load("della:tiny,ablate=shared")))
    keys |= {f"model.posterior.{name}" for one in MEMBERS for name in fields_of(one.options)}
    for file in config.shipped_dir().glob("*.py"):
        for preset in getattr(config._import(file), "PRESETS", ()):
            keys |= config.flatten(config.load(f"{file.stem}:{preset}")).keys()
    return keys


def test_every_entry_leads_to_a_key_of_a_shipped_config():
    keys = shipped_keys()
    for entry in renamed.KEYS:
        stack = entry.new.replace("model.encoder.", "model.decoder.")  # the same keys in both
        assert any(f"{key}.".startswith(f"{stack}.") for key in keys), entry
        assert not any(f"{key}.".startswith(f"{entry.old}.") for key in keys), entry
        assert entry.old.rpartition(".")[0] == entry.new.rpartition(".")[0], entry
    for key, values in renamed.VALUES.items():
        section, _, name = key.partition(".")
        choices = set(schema.SECTIONS[section][name].choices)
        assert set(values.values()) <= choices and not set(values) & choices


def test_a_member_outside_the_package_may_use_an_old_name(warnings):
    """A key of one family or member is left alone in a config of another."""
    entries = [entry for entry in renamed.KEYS if entry.only]
    for entry in entries:
        *sections, name = entry.old.split(".")
        tree = {name: 1}
        for word in reversed(sections):
            tree = {word: tree}
        cfg = ConfigDict(tree)
        renamed.update(cfg, renamed.warn)
        assert cfg.to_dict() == tree and renamed.key(entry.old, cfg) == entry.old
    assert entries and not warnings.messages
