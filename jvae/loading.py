"""A trained run as a `LoadedVAE`, from its directory alone: no data is read."""

from pathlib import Path

import jax
from jax.sharding import Mesh

from jvae import config as configs
from jvae import models, run, workdir
from jvae.api import Params, TextVAE
from jvae.checkpoint import Checkpoints
from jvae.data import tokenizers
from jvae.parallel import mesh as meshes
from jvae.space.loaded import LoadedVAE


def load(folder: str | Path, *, seed: int = 0) -> LoadedVAE:
    """The best checkpoint of the run in a folder, ready to encode and decode text.

        vae = jvae.load("runs/optimus-tiny")
        z = vae.encode(["two men are running in a park"])
        vae.decode(z + 0.5)

    Args:
      seed: of samples and of Langevin chains; every method takes its own too.
    Raises: CheckpointError if there is no run or no checkpoint that fits.
    """
    folder = Path(folder)
    workdir.saved_config(folder)  # says so where there is no run
    with Checkpoints(folder, read_only=True) as ckpts:
        meta = ckpts.meta(best=ckpts.best() is not None)
    config = configs.from_json(meta["config"])
    model = run.build_model(config)
    mesh = meshes.make_mesh(dict(data=1), jax.local_devices()[:1])
    params, _ = load_params(model, mesh, folder)
    family = models.family(config.model.family)
    names = ("encoder", "decoder")
    sides = {n: tokenizers.load(folder / run.TOKENIZER_FOLDER / n, n) for n in names}
    return LoadedVAE(
        model=model,
        params=params,
        encoder=sides["encoder"],
        decoder=sides["decoder"],
        rows=run.row_spec(config, family.limits(run.model_config(config))),
        limits=family.limits(run.model_config(config)),
        max_length=config.decode.max_length,
        decode_batch=config.decode.batch,
        seed=seed,
    )


def load_params(model: TextVAE, mesh: Mesh, folder: Path) -> tuple[Params, int]:
    """The best parameters of the run in a folder, in their shardings, and their step.

    Raises: CheckpointError if there is no checkpoint that fits.
    """
    abstract, where = run.param_shardings(model, mesh)
    wanted = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, where
    )
    with Checkpoints(folder, read_only=True) as ckpts:
        best = ckpts.best() is not None
        state, meta = ckpts.restore({"params": wanted}, best=best, partial=True)
    return state["params"], meta["step"]
