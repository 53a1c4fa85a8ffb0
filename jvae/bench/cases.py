"""The setup shared by all cases: a config with its own data, without a working directory."""

import functools
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jvae import config as configs
from jvae.api import Batch, Params, Side
from jvae.bench.harness import Preset, Work
from jvae.data.dataset import batches, eval_batches
from jvae.parallel import mesh as meshes
from jvae.runs import build

BATCHES = 4  # batches per call
ONE = ("sri-transformer",)  # configs for which one batch takes long enough


class Subject(NamedTuple):
    """A config to measure: its name and preset, and the values that override it."""

    spec: str
    changes: tuple[str, ...] = ()

    @property
    def config(self) -> ConfigDict:
        """The config object. Raises: ConfigError."""
        return configs.apply_overrides(configs.load(self.spec), self.changes)

    @property
    def words(self) -> tuple[str, ...]:
        """The equivalent arguments of `jvae.main`."""
        return (f"--config={self.spec}", *(f"--config.{change}" for change in self.changes))

    def on(self, data: str | None) -> "Subject":
        """The same subject with other data files, if any are given."""
        return (
            self if data is None else self._replace(changes=(*self.changes, f"data.train={data}"))
        )


class Case(NamedTuple):
    """A benchmark: the configs it runs under each preset, and the programs it times.

    `works` returns no programs if there is nothing to time (a model without a latent cannot
    encode). `compare` adds values that need the records of all programs, such as ratios. `peers`
    returns programs of another library that do the same work, each with the name of ours in
    `extra["beside"]`. `brief`: run only this many subjects, from the first, in a run of all cases.
    """

    subjects: Mapping[str, Sequence[Subject]]
    works: Callable[["Setting"], list[Work]]
    compare: Callable[[list[dict[str, Any]]], None] = lambda records: None
    peers: Callable[["Setting"], list[Work]] | None = None
    brief: int | None = None


class Setting(NamedTuple):
    """A model with fresh parameters, its data, and the kind of machine."""

    subject: Subject
    run: build.Run
    params: Params
    preset: Preset
    mesh: jax.sharding.Mesh

    @property
    def batches(self) -> int:
        """Number of batches per call."""
        return 1 if self.run.config.name in ONE else BATCHES

    def batch(self, split: str = "test") -> Batch:
        """The first batch of a split, on the device."""
        return jax.device_put(next(eval_batches(self.run.data[split], self.run.rows)))

    def train_batches(self, count: int) -> list[Batch]:
        """The first batches of training, as NumPy arrays."""
        with batches(self.run.data["train"], self.run.rows) as stream:
            return [next(stream)[0] for _ in range(count)]

    def fullest(self, count: int = 8) -> Batch:
        """The batch with the most tokens among the first training batches, on the device."""
        return jax.device_put(max(self.train_batches(count), key=useful_tokens))


def setting(subject: Subject, preset: Preset) -> Setting:
    """Opens a config at the preset's dtype. Raises: ConfigError, DataError."""
    config = ConfigDict(subject.config.to_dict())
    for side in ("encoder", "decoder"):
        if side in config.model:
            config.model[side].dtype = preset.dtype
    with tempfile.TemporaryDirectory() as folder:
        run = build.open_run(config, Path(folder))
    mesh = meshes.make_mesh(dict(data=1), jax.local_devices()[:1])
    _, where = build.param_shardings(run.model, mesh)
    params = jax.jit(run.model.init, out_shardings=where)(build.seeds(config.seed)["init"])
    return Setting(subject, run, params, preset, mesh)


def useful_tokens(*inputs: Batch) -> int:
    """Number of scored tokens in batches, without padding and start tokens."""
    return sum(int(np.sum(np.asarray(batch.scored_bt))) for batch in inputs)


def sentences(*inputs: Batch) -> int:
    """Number of examples in batches."""
    return sum(int(np.sum(np.asarray(batch.valid_e))) for batch in inputs)


def sides(batch: Batch) -> dict[str, Side]:
    """The sides a batch has, by name."""
    named = {"enc": batch.enc, "dec": batch.dec, "cond": batch.cond}
    return {name: side for name, side in named.items() if side is not None}


def fill(*inputs: Batch) -> dict[str, float]:
    """Share of positions that hold a token, per side, and of slots that hold a sentence."""
    shares = {}
    for name in sides(inputs[0]):
        segments = [np.asarray(sides(batch)[name].segment_bt) for batch in inputs]
        used, places = sum(int((a > 0).sum()) for a in segments), sum(a.size for a in segments)
        shares[name] = used / places
    return shares | {"slots": sentences(*inputs) / sum(batch.id_e.shape[0] for batch in inputs)}


def shapes(*inputs: Batch) -> dict[str, Any]:
    """Rows, slots and row lengths of batches; a list of lengths if batches differ."""
    rows = inputs[0].dec.token_bt.shape[0]
    sizes: dict[str, Any] = {"rows": rows, "slots": inputs[0].slots}
    for name in sides(inputs[0]):
        lengths = sorted({sides(batch)[name].token_bt.shape[1] for batch in inputs})
        sizes[f"{name}_row"] = lengths[0] if len(lengths) == 1 else lengths
    return sizes


def lengths(inputs: Iterable[Batch]) -> dict[str, np.ndarray]:
    """The length in tokens of every sentence in the batches, per side."""
    counted: dict[str, list[np.ndarray]] = {}
    for batch in inputs:
        slot = np.arange(1, batch.slots + 1)[None, None]
        valid_e = np.asarray(batch.valid_e)
        for name, side in sides(batch).items():
            count_bs = (np.asarray(side.segment_bt)[:, :, None] == slot).sum(axis=1)
            counted.setdefault(name, []).append(count_bs.reshape(-1)[valid_e])
    return {name: np.concatenate(parts) for name, parts in counted.items()}


@functools.cache
def copy_of() -> Callable[[Any], Any]:
    """A program that copies a tree of arrays, so that a step may overwrite the copy."""
    return jax.jit(lambda tree: jax.tree.map(jax.numpy.copy, tree))
