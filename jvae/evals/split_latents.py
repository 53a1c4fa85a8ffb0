"""Draws from the posterior of every sentence of a split, cached in the folder of the run.

A file's cache key covers its weights, text, seed and number of draws. A file with a wrong checksum
is recomputed.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from safetensors.numpy import load, save

from jvae.api import Params
from jvae.data.dataset import eval_batches
from jvae.errors import CheckpointError
from jvae.evals.collect import collect
from jvae.inference import scoring
from jvae.parallel import mesh as meshes
from jvae.runs import build, workdir

FOLDER = "latents"

log = logging.getLogger(__name__)


def split_latents(
    run: build.Run,
    mesh: Mesh,
    params: Params,
    split: str,
    samples: int,
    *,
    weights: str,
    seed: int = 0,
    ids: np.ndarray | None = None,
) -> Float[np.ndarray, "n k g z"]:
    """`samples` draws for each sentence of a split, in the order of the split.

    Args:
      weights: digest of `params`.
      ids: restrict to these sentences, ascending.
    """
    chosen = np.arange(len(run.data[split])) if ids is None else ids
    key, path = _place(run, split, samples, weights, seed, chosen)
    z_nkgz = _stored(path, key)
    if z_nkgz is not None:
        return z_nkgz
    model, draw_key = run.model, jax.random.key(seed)

    def parts() -> Iterator[tuple[jax.Array, jax.Array]]:
        part, count = meshes.row_part(mesh, run.rows.batch_rows)
        batches = eval_batches(
            run.data[split], run.eval_rows, chosen, process_index=part, process_count=count
        )
        for batch in batches:
            at = meshes.to_device(batch, mesh)
            yield at.id_e, scoring.draws(model.gen, model.post, samples, params, at, draw_key)

    with meshes.inside(mesh):
        _, z_nkgz = collect(parts())
    z_nkgz = np.ascontiguousarray(z_nkgz, np.float32)
    about = {"key": key, "sha256": hashlib.sha256(z_nkgz.tobytes()).hexdigest()}
    try:
        workdir.write_bytes(path, save({"z": z_nkgz}, metadata={"jvae": json.dumps(about)}))
    except CheckpointError as error:
        log.warning("latents are not kept: %s", error)
    return z_nkgz


def _place(
    run: build.Run, split: str, samples: int, weights: str, seed: int, ids: np.ndarray
) -> tuple[str, Path]:
    """The cache key as a hash, and the file."""
    digest = hashlib.sha256(f"{weights} {samples} {seed}\n".encode())
    texts = run.data[split].texts
    sources = run.data[split].lines.source
    for i in ids.tolist():
        digest.update(f"{texts[i]}\0{sources[i] if sources is not None else ''}\n".encode())
    key = digest.hexdigest()
    return key, run.workdir / FOLDER / f"{split}-{key[:16]}.safetensors"


def _stored(path: Path, key: str) -> np.ndarray | None:
    """The latents in a file; None if it is missing or corrupt."""
    try:
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        about = json.loads(header["__metadata__"]["jvae"])
        z_nkgz = load(data)["z"]
        if about["key"] == key and about["sha256"] == hashlib.sha256(z_nkgz.tobytes()).hexdigest():
            return z_nkgz
        fault = "its checksum is wrong"
    except FileNotFoundError:
        return None
    except Exception as error:  # a truncated file can fail anywhere
        fault = str(error) or type(error).__name__
    log.warning("%s: %s; the latents are drawn again", path, fault)
    return None
