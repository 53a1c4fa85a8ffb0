"""A run that starts from a trained model: pre-trained on several corpora, fine-tuned on another."""

from pathlib import Path

import jax
import numpy as np
import pytest

import jvae
from jvae import config as configs
from jvae.data import grammar
from jvae.errors import ConfigError, WeightsError
from jvae.runs import build
from jvae.runs.checkpoint import Checkpoints
from jvae.training import init_params, loop
from jvae.tree import named_leaves

pytestmark = pytest.mark.slow

SMALL = (
    *(f"model.{side}.{key}={value}" for side in ("encoder", "decoder") for key, value in
      dict(layers=1, width=8, heads=2, mlp=8, positions=64).items()),
    "model.latent=2",
    "mesh.data=1",
    "optim.warmup_steps=1",
    "data.row_tokens=32",
    "data.batch_rows=4",
    "data.tokenizer_kind=word",
    "data.vocab=0",
    "train.steps=3",
    "train.check_every=3",
    "train.tensorboard=false",
)  # fmt: skip


class Place:
    """Two files to pre-train on, one to fine-tune on, and the pre-trained run."""

    def __init__(self, root: Path):
        self.root = root
        lines = [s.text for s in grammar.corpus("train", 300)]
        (root / "a.txt").write_text("".join(f"{line}\n" for line in lines[:100]))
        (root / "b.tsv").write_text("".join(f"x\t{line}\n" for line in lines[100:200]))
        (root / "c.txt").write_text("".join(f"{line}\n" for line in lines[200:]))
        self.pretrained = root / "pre"
        loop.train(self.config(data__train=(root / "a.txt", root / "b.tsv")), self.pretrained)

    def config(self, **values):
        flags = [f"{key.replace('__', '.')}={_text(value)}" for key, value in values.items()]
        cache = f"data.cache={self.root / 'cache'}"
        return configs.apply_overrides(configs.load("optimus"), [*SMALL, cache, *flags])

    def open(self, **values) -> build.Run:
        values = {"data__train": self.root / "c.txt", "init__model": self.pretrained} | values
        return build.open_run(self.config(**values), self.root / "fine")


def _text(value) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return Place(tmp_path_factory.mktemp("init"))


def _best(folder: Path, part: str):
    with Checkpoints(folder, read_only=True) as ckpts:
        config = configs.from_json(ckpts.meta(best=True)["config"])
        model = build.build_model(config)
        like = jax.eval_shape(model.init, jax.random.key(0))
        return named_leaves(ckpts.restore({part: like}, best=True, partial=True)[0][part])


def test_parameters_and_tokenizers_are_those_of_the_run(place):
    run = place.open()
    before = build.open_run(configs.load("optimus"), place.pretrained)  # its own tokenizers
    assert run.decoder.fingerprint == before.decoder.fingerprint
    assert run.encoder.fingerprint == before.encoder.fingerprint
    params = named_leaves(init_params.initial_params(run, None, jax.random.key(5)))
    for path, leaf in _best(place.pretrained, "params").items():
        np.testing.assert_array_equal(params[path], leaf, err_msg=path)


@pytest.mark.slow
def test_an_export_does_as_well_and_a_part_alone(place):
    jvae.export(place.pretrained, place.root / "export")
    run = place.open(init__model=place.root / "export", init__part="^decoder/layers")
    params = named_leaves(init_params.initial_params(run, None, jax.random.key(5)))
    fresh = named_leaves(jax.jit(run.model.init)(jax.random.key(5)))
    for path, leaf in _best(place.pretrained, "params").items():
        want = leaf if path.startswith("decoder/layers") else fresh[path]
        np.testing.assert_array_equal(params[path], want, err_msg=path)


@pytest.mark.slow
def test_moments_come_along_and_schedules_start_again(place):
    config = place.config(
        data__train=place.root / "c.txt", init__model=place.pretrained, init__optimizer=True
    )
    run = build.open_run(config, place.root / "moments")
    from jvae.parallel import mesh as meshes
    from jvae.runs.phases import resolve
    from jvae.training import program

    compiled = program.compile_phase(run, resolve(config)[0], meshes.make_mesh(config.mesh), 0)
    state = compiled.start(
        init_params.initial_params(run, compiled.where.params, jax.random.key(5))
    )
    actual = named_leaves(init_params.initial_optimizer(run, state.opt_state))
    with Checkpoints(place.pretrained, read_only=True) as ckpts:
        like = {"opt_state": compiled.abstract.opt_state}
        theirs = named_leaves(ckpts.restore(like, best=True, partial=True)[0]["opt_state"])
    counts = [path for path, leaf in theirs.items() if leaf.ndim == 0]
    for path, leaf in theirs.items():
        if path not in counts:
            np.testing.assert_array_equal(actual[path], leaf, err_msg=path)
    assert sorted(int(actual[path]) for path in counts) == [0, 3]  # schedule, bias correction


def test_what_does_not_fit_is_told(place):
    with pytest.raises(WeightsError, match="this model's"):
        run = place.open(model__latent=3)
        init_params.initial_params(run, None, jax.random.key(0))
    with pytest.raises(ConfigError, match="matches no parameter"):
        run = place.open(init__part="^nowhere")
        init_params.initial_params(run, None, jax.random.key(0))
    with pytest.raises(ConfigError, match="init.model must be the folder of a run, not ''"):
        run = place.open(init__model="", init__optimizer=True)
        init_params.initial_optimizer(run, ())
    other = place.root / "other"
    run = place.open(init__model="")
    run.decoder.save(other)
    run = place.open(data__decoder_tokenizer=other, data__encoder_tokenizer=other)
    with pytest.raises(WeightsError, match="leave data.encoder_tokenizer empty to take that of"):
        init_params.initial_params(run, None, jax.random.key(0))
