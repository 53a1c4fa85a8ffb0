"""Validation during training: the values of a check, and those that it compares with training."""

import logging
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key

from jvae.api import Params
from jvae.data.dataset import eval_batches
from jvae.latent.kl import per_dimension
from jvae.parallel import mesh as meshes
from jvae.runs import build, metrics, phases
from jvae.training import latent_monitor, program

log = logging.getLogger(__name__)


def validation(
    run: build.Run, mesh: Mesh, key: Key[Array, ""]
) -> Callable[[program.Program, Params, int], tuple[dict[str, float], np.ndarray | None]]:
    """Validation: the whole split, dropout off, the final KL weight, the same noise every time.
    Returns its values, with -ELBO if the posterior has a density, and the mean KL of each dimension
    if that has a closed form.
    """
    key = meshes.everywhere(key, mesh)
    data = run.data["valid"]
    # With several programs at once, virtual devices may deadlock waiting for each other's sums.
    one_by_one = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
    part, parts = meshes.row_part(mesh, run.rows.batch_rows)
    # The first sentences form batches of their own, because their posteriors are kept.
    first, rest = np.split(np.arange(len(data)), [latent_monitor.SENTENCES])

    def check(
        current: program.Program, params: Params, done: int
    ) -> tuple[dict[str, float], np.ndarray | None]:
        sums: metrics.Sums | None = None
        kl_gz = None
        kept = []
        for ids in (first, rest) if len(rest) else (first,):
            for batch in eval_batches(data, run.rows, ids, process_index=part, process_count=parts):
                batch = meshes.to_device(batch, mesh)
                batch_sums, post = current.valid_step(params, batch, key)
                sums = metrics.add(sums, batch_sums)
                if ids is first and post is not None:
                    kept.append((batch.id_e, post))
                if one_by_one:
                    jax.block_until_ready(sums)
        assert sums is not None  # a split has at least one sentence
        values = metrics.ratios(sums)
        row = {name: values[name] for name in ("loss", "rec", "kl")}
        if program.has_bound(run.model):
            row["neg_elbo"] = values["rec"] + values["kl"]
        if current.watched and len(first) > 1:  # a variance over sentences needs two
            with jax.transfer_guard("allow"):  # once per check
                use = latent_monitor.latent_use(run.model, params, kept, key, values["kl"])
            kl_gz = use.kl_gz
            row |= {
                "collapsed": int(bool(use.collapse_reasons)),
                "mi": use.mi_nats,
                "au": use.active,
            }
            if use.collapse_reasons:
                dimensions = per_dimension(run.model.post, run.model.prior)
                log.warning(
                    "step %d: the latent is not used (%s): the posterior has collapsed to the "
                    "prior, or has not left it yet. Slower or cyclic objective.beta%s keeps it "
                    "in use",
                    done,
                    "; ".join(use.collapse_reasons),
                    ", or objective.free_bits," if dimensions else "",
                )
        return row, kl_gz

    return check


def per_token_of(
    run: build.Run,
) -> Callable[[phases.Phase, dict[str, float], dict[str, float]], dict[str, tuple[float, float]]]:
    """Returns a function of a phase, the values of a lap and those of a check: Rec and -ELBO, each
    for training and validation, in nats per scored token.
    """
    train_data, valid_data = run.data["train"], run.data["valid"]
    # A lap counts the tokens of all sides together; the share of scored ones is that of the split.
    read = sum(float(side.lengths.mean()) for side in train_data.sides.values())
    share = float(train_data.target_lengths.mean()) / read
    length = float(valid_data.target_lengths.mean())

    def per_token(
        phase: phases.Phase, lap: dict[str, float], valid: dict[str, float]
    ) -> dict[str, tuple[float, float]]:
        a, b = share * lap["tokens"] / lap["sentences"], length
        bounds = (phase.bound(values["rec"], values["kl"]) for values in (lap, valid))
        return {
            "rec": (lap["rec"] / a, valid["rec"] / b),
            "bound": (next(bounds) / a, next(bounds) / b),
        }

    return per_token
