"""Loads a trained run or an export as a `LoadedVAE` from its folder; no data is read."""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
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
from jvae.pretrained.files import SUMS
from jvae.pretrained.names import NameRule, Vocab, vocab_rows
from jvae.runs import build, exports, identity, model_card, model_names, priors, publish, workdir
from jvae.runs import data as run_data
from jvae.runs.checkpoint import Checkpoints

log = logging.getLogger(__name__)

HEAD = "lm_head.weight"  # the output head of a family whose own files tie it
T = TypeVar("T")


def load(
    name: str | os.PathLike[str], *, seed: int = 0, base: Mapping[str, str] | None = None
) -> LoadedVAE:
    """Loads a trained model, ready to encode and decode text.

        vae = jvae.load("optimus-tiny")
        z = vae.encode(["two men are running in a park"])
        vae.decode(z + 0.5)

    Args:
      name: folder of a run or an export; a model that ships with jvae ("optimus-tiny"); or a
        repository on the Hugging Face hub. They are tried in this order, and the log names the
        match. For a run this loads the best checkpoint, or, with a warning, the last one if the
        best is damaged.
      seed: for sampling and Langevin chains; every method also takes its own.
      base: see `jvae.runs.exports.load_export`.
    Raises: CheckpointError if there is no checkpoint that fits; WeightsError if an export cannot
      be read or does not match its hashes, or if the tokenizers differ from those of training.
    """
    folder = model_names.folder_of(name)
    parts = _read(folder, base)
    model = build.build_model(parts.config)
    vae = text_vae(parts.config, model, parts.params, parts.encoder, parts.decoder, seed)
    write = partial(export if is_run(folder) else publish.copy, folder)
    return replace(
        vae,
        open_prior=priors.Opener(folder, parts.params),
        publish=partial(publish.push, write),
    )


def text_vae(
    config: ConfigDict,
    model: TextVAE,
    params: Params,
    encoder: TextTokenizer,
    decoder: TextTokenizer,
    seed: int = 0,
) -> LoadedVAE:
    """Wraps a model with its parameters and tokenizers as a text tool."""
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
        name=config.get("name", config.model.family),
    )


def read_model(
    name: str | os.PathLike[str], base: Mapping[str, str] | None = None
) -> exports.Export:
    """Reads a run (its best checkpoint) or an export. Arguments and errors as for `load`."""
    return _read(model_names.folder_of(name), base)


def _read(folder: Path, base: Mapping[str, str] | None) -> exports.Export:
    return _read_run(folder) if is_run(folder) else exports.load_export(folder, base=base)


def export(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    adapters: bool = False,
    name: str = "",
    license: str = "",
) -> None:
    """Writes the best checkpoint of a run and its fitted priors as one folder that `load` can read
    and that can be uploaded to a hub. Low-rank additions are merged into the kernels.

    Args:
      adapters: leave out the pretrained weights that training did not change, and keep low-rank
        additions separate; `load` reads the pretrained weights from the folders or hub names in
        `config.init`.
      name: the model's name on its card; by default that of the run's config.
      license: the license on the card, as abbreviated on hubs, such as "apache-2.0".
    Raises: CheckpointError if there is no run; WeightsError if `out` already exists, or the
      pretrained weights cannot be read or were all trained.
    """
    parts = _read_run(Path(folder))
    base = exports.base_of(parts.config, parts.params) if adapters else None
    content = parts if adapters else exports.merged(parts)
    exports.export_model(
        out,
        *content,
        model_card.of_run(Path(folder), name, license),
        priors.for_export(Path(folder), parts.params, content.params),
        base,
    )


def export_backbone(
    name: str | os.PathLike[str], out: str | os.PathLike[str], role: str = "decoder"
) -> None:
    """Writes one pretrained part of a trained model as a folder that `transformers` can open: its
    config.json, weights and tokenizer. Low-rank additions are merged into the kernels; the layers
    that process z are left out.

    Args:
      name: as for `load`. out: a new folder. role: "encoder" or "decoder".
    Raises: WeightsError if the model lacks that part, or `transformers` could not load it, or `out`
      already contains weights.
    """
    model = exports.merged(read_model(name))
    config = ConfigDict(model.config.to_dict())
    section = config.model
    own_head = "head" in model.params.get(role, {})
    if own_head and "tied" in section[role]:
        section[role].tied = False  # a model may untie the head of a stack whose config ties it
    parts = {part.key: part for part in models.family(section.family).parts(section)}
    if role not in parts:
        roles = ", ".join(parts) or "none"
        raise WeightsError(
            f"{name}: model.family={section.family} has no {role} to export; parts: {roles}"
        )
    part, part_config = parts[role], build.model_config(config)
    fields = dataclasses.asdict(getattr(part_config, part.sections[0]))
    vocab = Vocab(fields["vocab"], fields["vocab"])
    table = part.table(vocab)
    if "cross" in fields:
        fields["cross"] = any("/cross/" in rule.path for rule in table.rules)
        if fields["cross"] and not any(rule.path.startswith("encoder/") for rule in table.rules):
            raise WeightsError(
                f"{name}: its encoder and decoder do not share a token embedding, as those of "
                f"{part.backbone.name} do; export the whole model instead"
            )
    tokenizer = model.encoder if part.role == "encoder" else model.decoder
    ids = dict(bos=tokenizer.start_id, eos=tokenizer.end_id, pad=tokenizer.pad_id)
    special: dict[str, Any] = {f"{key}_token_id": i for key, i in ids.items() if i is not None}
    if "cross" in fields:  # an encoder and a decoder
        special["decoder_start_token_id"] = tokenizer.start_id
    head = NameRule(f"{role}/head/table", (HEAD,), vocab_rows(vocab))
    if own_head and all(rule.path != head.path for rule in table.rules):
        if "cross" in fields:
            raise WeightsError(
                f"{name}: its output head is not its token embedding, as {part.backbone.name} "
                "needs; export the whole model instead"
            )
        table = replace(table, rules=(*table.rules, head))
        special["tie_word_embeddings"] = False
    for key, value in part.backbone.fixed.items():
        if special.get(key, value) != value:
            log.warning(
                "%s: config.json has %s=%d, as %s needs, and the tokenizer %d; texts that "
                "contain id %d get other states in transformers",
                *(out, key, value, part.backbone.name, special[key], value),
            )
    pretrained.export_backbone(Path(out), part.backbone, table, model.params, fields, special)
    tokenizer.save(Path(out), config=True)


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run rather than an export."""
    # An export has a list of hashes; any other problem is reported as a fault of the run.
    return not (folder / SUMS).is_file()


def _read_run(folder: Path) -> exports.Export:
    workdir.saved_config(folder)  # raises if there is no run
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
        raise CheckpointError(
            f"{ckpts.root}: a checkpoint without a config, so it does not belong to a run"
        )
    return configs.stored(text)


def load_params(model: TextVAE, mesh: Mesh, folder: Path) -> tuple[Params, int]:
    """The best parameters of the run in a folder, with their shardings, and their step.

    Raises: CheckpointError if there is no checkpoint that fits.
    """
    abstract, where = build.param_shardings(model, mesh)
    targets = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, where
    )
    state, meta = _best(
        folder, lambda ckpts, best: ckpts.restore({"params": targets}, best=best, partial=True)
    )
    return state["params"], meta["step"]


def _best(folder: Path, read: Callable[[Checkpoints, bool], T]) -> T:
    """Applies `read` to the best checkpoint, or to the last one if the best is damaged or absent.

    Raises: CheckpointError.
    """
    with Checkpoints(folder, read_only=True) as ckpts:
        if ckpts.best() is None:
            return read(ckpts, False)
        try:
            return read(ckpts, True)
        except CheckpointError as error:
            # An intact checkpoint that does not fit is still the best one, which `best` names.
            if ckpts.best() is not None or ckpts.latest() is None:
                raise
            log.warning(
                "%s: the best checkpoint is damaged, so step %d, the last one, is used instead",
                folder,
                ckpts.latest(),
            )
            with contextlib.suppress(CheckpointError):
                return read(ckpts, False)
            raise error
