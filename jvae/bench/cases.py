"""What every case starts from: a run of a config on its own data, without a working directory."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jvae import run
from jvae.api import Batch, Params
from jvae.bench.harness import Preset, Work
from jvae.data.dataset import eval_batches
from jvae.parallel import mesh as meshes


class Case(NamedTuple):
    """A benchmark: the config it runs unless told otherwise, and the programs it times.

    `compare` adds what only all programs together say, such as a ratio, to the records.
    """

    config: str
    works: Callable[["Setting"], list[Work]]
    compare: Callable[[list[dict[str, Any]]], None] = lambda records: None


class Setting(NamedTuple):
    """A model with fresh parameters and its data."""

    run: run.Run
    params: Params

    def batch(self, split: str = "test") -> Batch:
        """The first batch of a split, on the device."""
        return jax.device_put(next(eval_batches(self.run.data[split], self.run.rows)))


def setting(config: ConfigDict, preset: Preset) -> Setting:
    """Opens a config at the preset's dtype. Raises: ConfigError, DataError."""
    config = ConfigDict(config.to_dict())
    for side in ("encoder", "decoder"):
        if side in config.model:
            config.model[side].dtype = preset.dtype
    with tempfile.TemporaryDirectory() as folder:
        this = run.open_run(config, Path(folder))
    mesh = meshes.make_mesh(dict(data=1), jax.local_devices()[:1])
    _, where = run.param_shardings(this.model, mesh)
    params = jax.jit(this.model.init, out_shardings=where)(run.seeds(config.seed)["init"])
    return Setting(this, params)


def useful_tokens(batch: Batch) -> int:
    """Scored tokens of a batch: neither padding nor starts of sentences."""
    return int(np.sum(np.asarray(batch.scored_bt)))


def shapes(batch: Batch) -> dict[str, Any]:
    """Rows, row lengths and slots of a batch."""
    sides = {"enc": batch.enc, "dec": batch.dec}
    lengths = {f"{k}_row": side.token_bt.shape[1] for k, side in sides.items() if side is not None}
    return {"rows": batch.dec.token_bt.shape[0], "slots": batch.slots, **lengths}
