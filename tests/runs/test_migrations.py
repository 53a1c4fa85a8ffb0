"""Parameters of older runs: paths there and back, for a whole training state."""

import json

import jax
import pytest

from jvae import config as configs
from jvae.errors import ConfigError
from jvae.runs import build
from jvae.runs.migrations import Paths
from jvae.training import optim, step
from jvae.tree import named_leaves

MOVED = tuple(f"chain/{part}/{leaf}" for part in ("latent", "state") for leaf in ("bias", "kernel"))


def _stored(spec: str, schema: int) -> str:
    """The config as a version of that schema stored it; the first one wrote no number."""
    tree = json.loads(configs.to_json(configs.load(spec)))
    assert tree.pop("schema") == configs.SCHEMA
    return json.dumps(tree if schema == 1 else {"schema": schema, **tree})


@pytest.fixture(scope="module")
def state() -> list[str]:
    """Paths of a training state of DELLA."""
    config = configs.load("della:tiny")
    with config.unlocked():
        for side in ("encoder", "decoder"):
            if side in config.model:
                config.model[side].vocab = 300
    params = jax.eval_shape(build.build_model(config).init, jax.random.key(0))
    tx = optim.build(config.optim.to_dict(), params, config.train.steps)
    return list(named_leaves(jax.eval_shape(lambda p: step.init_state(p, tx), params)))


def test_old_and_new_are_inverse_on_parameters_and_moments(state):
    paths = Paths.of(_stored("della:tiny", 1))
    old = [paths.old(path) for path in state]
    assert [paths.new(path) for path in old] == state
    assert len(set(old)) == len(state)
    changed = {a: b for a, b in zip(state, old, strict=True) if a != b}
    # Parameters, first and second moments.
    assert len(changed) == 3 * len(MOVED)
    assert {p.split("latent/", 1)[1] for p in changed} == set(MOVED)
    for today, then in changed.items():
        head, tail = today.split("latent/", 1)
        assert then == f"{head}prior/{tail}"
        assert paths.new(today) == today  # what is in its place already stays there
    assert any(path.startswith("params/") for path in changed)


def test_what_has_not_moved_keeps_its_paths(state):
    unchanged = (
        Paths.of(_stored("della:tiny", configs.SCHEMA)),
        Paths.of(_stored("optimus:tiny", 1)),
        Paths.of(None),
    )
    for paths in unchanged:
        assert [paths.old(path) for path in state] == state
        assert [paths.new(path) for path in state] == state
    paths = Paths.of(_stored("della:tiny", 1))
    for path in ("prior/head/chain/kernel", "xprior/chain/state/kernel", "prior/chain/other/bias"):
        assert paths.new(path) == path


def test_a_config_of_a_newer_version_is_refused():
    with pytest.raises(ConfigError, match=rf"schema {configs.SCHEMA + 1}.*update jvae"):
        Paths.of(_stored("della:tiny", configs.SCHEMA + 1))
