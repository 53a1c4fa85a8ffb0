"""A trained run or an export as a `LoadedVAE`, from its folder alone: no data is read."""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jvae import config as configs
from jvae import models
from jvae.api import Params, TextVAE
from jvae.data import tokenizers
from jvae.data.tokenizers import TextTokenizer
from jvae.errors import CheckpointError, WeightsError
from jvae.inference.text_vae import LoadedVAE
from jvae.parallel import mesh as meshes
from jvae.pretrained import export as pretrained
from jvae.pretrained.names import Vocab
from jvae.runs import build, exports, identity, priors, workdir
from jvae.runs import data as run_data
from jvae.runs.checkpoint import Checkpoints

log = logging.getLogger(__name__)

T = TypeVar("T")


def load(
    name: str | os.PathLike[str], *, seed: int = 0, base: Mapping[str, str] | None = None
) -> LoadedVAE:
    """A trained model, ready to encode and decode text.

        vae = jvae.load("runs/optimus-tiny")
        z = vae.encode(["two men are running in a park"])
        vae.decode(z + 0.5)

    Args:
      name: folder of a run, or folder or hub name of an export. A run gives its best checkpoint,
        or its last one, with a warning, where the best is damaged.
      seed: of samples and of Langevin chains; every method takes its own too.
      base: see `jvae.runs.exports.load_export`.
    Raises: CheckpointError if there is no checkpoint that fits; WeightsError if an export cannot
      be read or is not what its hashes say, or if the tokenizers are not those of the training.
    """
    parts = read_model(name, base)
    model = build.build_model(parts.config)
    vae = text_vae(parts.config, model, parts.params, parts.encoder, parts.decoder, seed)
    folder = Path(name) if is_run(name) else exports.folder_of(name)
    return replace(vae, open_prior=priors.Opener(folder, parts.params))


def text_vae(
    config: ConfigDict,
    model: TextVAE,
    params: Params,
    encoder: TextTokenizer,
    decoder: TextTokenizer,
    seed: int = 0,
) -> LoadedVAE:
    """A model with its parameters and tokenizers as a tool on text."""
    family, model_config = models.family(config.model.family), build.model_config(config)
    limits = family.limits(model_config)
    return LoadedVAE(
        model=model,
        params=params,
        encoder=encoder,
        decoder=decoder,
        rows=build.row_spec(config, limits),
        limits=limits,
        joined=family.joined(model_config),
        turns=config.data.turns,
        max_length=config.decode.max_length,
        decode_batch=config.decode.batch,
        seed=seed,
    )


def read_model(
    name: str | os.PathLike[str], base: Mapping[str, str] | None = None
) -> exports.Export:
    """What a run (its best checkpoint) or an export holds. Arguments and errors as of `load`."""
    try:
        a_run = is_run(name)
    except (OSError, ValueError) as error:  # a name too long, or with NUL
        raise WeightsError(f"{os.fspath(name)[:80]!r}: cannot be a folder ({error})") from None
    return _read_run(Path(name)) if a_run else exports.load_export(name, base=base)


def export(
    folder: str | os.PathLike[str], out: str | os.PathLike[str], *, adapters: bool = False
) -> None:
    """Writes the best checkpoint of a run, with the priors fitted to it, as one folder that `load`
    reads and a hub takes. Low-rank additions become part of the kernels.

    Args:
      adapters: leaves out the pretrained weights that training left as they were, and low-rank
        additions as they are; `load` reads the rest from the folders or hub names of
        `config.init`.
    Raises: CheckpointError if there is no run; WeightsError if `out` is there already, or the
      pretrained weights cannot be read or were all trained.
    """
    parts = _read_run(Path(folder))
    base = exports.base_of(parts.config, parts.params) if adapters else None
    whole = parts if adapters else exports.merged(parts)
    table = Path(folder) / "eval" / "test.txt"
    results = f"```\n{workdir.read_text(table)}```\n" if table.is_file() else ""
    exports.export_model(
        out,
        *whole,
        results,
        priors.for_export(Path(folder), parts.params, whole.params),
        base,
    )


def export_backbone(
    name: str | os.PathLike[str], out: str | os.PathLike[str], role: str = "decoder"
) -> None:
    """Writes one pretrained part of a trained model as a folder that `transformers` opens: its
    config.json, weights and tokenizer. Low-rank additions become part of the kernels; what z goes
    through is left aside.

    Args:
      name: as of `load`. out: a new folder. role: "encoder" or "decoder".
    Raises: WeightsError for a part that the model does not have or others could not load, or where
      `out` holds weights already.
    """
    model = exports.merged(read_model(name))
    section: Any = model.config.model
    parts = {part.key: part for part in models.family(section.family).parts(section)}
    if role not in parts:
        known = ", ".join(parts) or "none"
        raise WeightsError(
            f"{name}: model.family={section.family} has no {role} to export; parts: {known}"
        )
    part, own = parts[role], build.model_config(model.config)
    fields = dataclasses.asdict(getattr(own, part.sections[0]))
    table = part.table(Vocab(fields["vocab"], fields["vocab"]))
    if "cross" in fields:
        fields["cross"] = any("/cross/" in rule.path for rule in table.rules)
    tokenizer = model.encoder if part.role == "encoder" else model.decoder
    ids = dict(bos=tokenizer.start_id, eos=tokenizer.end_id, pad=tokenizer.pad_id)
    special = {f"{key}_token_id": i for key, i in ids.items() if i is not None}
    pretrained.export_backbone(Path(out), part.backbone, table, model.params, fields, special)
    tokenizer.save(Path(out), config=True)


def is_run(name: str | os.PathLike[str]) -> bool:
    """Whether a name is that of a run, not of an export."""
    folder = Path(name)
    # An export has its list of hashes; whatever else there is or is not is told as a run's fault.
    return not (folder / exports.SUMS).is_file() and (folder.is_dir() or folder.is_absolute())


def _read_run(folder: Path) -> exports.Export:
    workdir.saved_config(folder)  # says so where there is no run
    saved = identity.saved(folder)
    if saved is None:
        raise CheckpointError(f"{folder}: its training has not saved a checkpoint yet")
    config = _best(folder, _config_of)
    mesh = meshes.make_mesh(dict(data=1), jax.local_devices()[:1])
    roles = ("encoder", "decoder")
    encoder, decoder = (tokenizers.load(folder / run_data.TOKENIZER_FOLDER / r, r) for r in roles)
    exports.check_vocabularies(folder, config, encoder, decoder)
    identity.check_tokenizers(saved, encoder, decoder, WeightsError)
    params, _ = load_params(build.build_model(config), mesh, folder)
    return exports.Export(config, encoder, decoder, params)


def _config_of(ckpts: Checkpoints, best: bool) -> ConfigDict:
    text = ckpts.meta(best=best).get("config")
    if not isinstance(text, str):
        raise CheckpointError(f"{ckpts.root}: a checkpoint without a config; not one of a run")
    return configs.stored(text)


def load_params(model: TextVAE, mesh: Mesh, folder: Path) -> tuple[Params, int]:
    """The best parameters of the run in a folder, in their shardings, and their step.

    Raises: CheckpointError if there is no checkpoint that fits.
    """
    abstract, where = build.param_shardings(model, mesh)
    wanted = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, where
    )
    state, meta = _best(
        folder, lambda ckpts, best: ckpts.restore({"params": wanted}, best=best, partial=True)
    )
    return state["params"], meta["step"]


def _best(folder: Path, read: Callable[[Checkpoints, bool], T]) -> T:
    """What `read` gives for the best checkpoint; for the last one where that is damaged or absent.

    Raises: CheckpointError.
    """
    with Checkpoints(folder, read_only=True) as ckpts:
        if ckpts.best() is None:
            return read(ckpts, False)
        try:
            return read(ckpts, True)
        except CheckpointError as error:
            # A whole checkpoint that does not fit stays the best one, which `best` still names.
            if ckpts.best() is not None or ckpts.latest() is None:
                raise
            log.warning(
                "%s: the best checkpoint is damaged, so step %d, the last one, stands in for it",
                folder,
                ckpts.latest(),
            )
            with contextlib.suppress(CheckpointError):
                return read(ckpts, False)
            raise error
