"""Exchanging whole models: import checkpoints of the original repositories, write and read exports.

An export is one self-contained folder: our config, both tokenizers, the weights by our parameter
paths, and the SHA-256 of each of these files. Its model card may be edited or absent. An adapter
export holds only the parameters that training added or changed; it lacks the pretrained weights,
which it names.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from jvae import config as configs
from jvae import models
from jvae.api import Params, TextVAE
from jvae.config import dataclass_from
from jvae.data import tokenizers
from jvae.data.tokenizers import TextTokenizer
from jvae.errors import ConfigError, WeightsError
from jvae.nn import lora
from jvae.nn.lora import Lora
from jvae.pretrained import files, names, originals
from jvae.pretrained.names import NameRule, NameTable
from jvae.runs import bases, model_card
from jvae.runs.build import build_model, model_config
from jvae.runs.data import TOKENIZER_FOLDER
from jvae.runs.migrations import Paths
from jvae.runs.model_card import About
from jvae.tree import named_leaves

ADAPTERS = "adapters.safetensors"  # instead of a file with all weights
CARD = model_card.FILE
ROLES = ("encoder", "decoder")
NEEDED = (
    files.CONFIG,
    *(f"{TOKENIZER_FOLDER}/{role}/{tokenizers.FILE}" for role in ROLES),
)
_SUM_LINE = re.compile(r"([0-9a-f]{64})  ([\w./-]+)")


def import_original(
    path: str | os.PathLike[str], family: str, config: Any, shardings: Any = None
) -> Params:
    """Converts a checkpoint written by an original repository to jvae parameters.

    Args:
      path: .safetensors or .npz with the names of the state dict; .bin, .pt, .pth or .ckpt if torch
        is installed, through its weights-only loader.
      family: optimus, ... config: that family's config, with the sizes of the checkpoint.
      shardings: a tree like the parameters, or None for the default device.
    Raises: ConfigError for a family without an importer; WeightsError for a file that cannot be
      read or does not fit.
    """
    member = models.family(family)
    if member.original is None:
        families = ", ".join(
            name for name, candidate in models.FAMILIES.items() if candidate.original
        )
        raise ConfigError(f"originals of {family!r} cannot be imported; known: {families}")
    file = Path(path).expanduser()
    foreign = originals.open_original(file)
    target = _target(member.build(config), shardings)
    try:
        return names.load_into(member.original(config), foreign, target)
    except WeightsError as error:
        raise WeightsError(f"{file}: {error}") from None


def _target(model: TextVAE, shardings: Any) -> Params:
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    if shardings is None:
        return abstract
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings
    )


class Base(NamedTuple):
    """Pretrained weights that an export leaves out. where: as returned by `bases.located`."""

    where: Mapping[str, str]
    leaves: Mapping[str, Array]  # pretrained parameters by path


class Export(NamedTuple):
    """The contents of an exported folder."""

    config: ConfigDict
    encoder: TextTokenizer
    decoder: TextTokenizer
    params: Params


def base_of(config: ConfigDict, params: Params) -> Base:
    """The pretrained weights that training left unchanged, bit for bit.

    Raises: WeightsError if there are none, or they cannot be read.
    """
    where, leaves = bases.located(bases.named(config)), named_leaves(params)
    kept = bases.same(leaves, bases.read(config, where, leaves))
    if not kept:
        names = ", ".join(where.values()) or "init.encoder and init.decoder are empty"
        raise WeightsError(
            f"no parameters of this model are still those of a pretrained one ({names}); export it "
            "whole"
        )
    return Base(where, kept)


def merged(export: Export) -> Export:
    """Merges low-rank additions into their kernels: the same function, with the parameters and the
    config of a model without low-rank additions.
    """
    config, params = ConfigDict(export.config.to_dict()), dict(export.params)
    copies = models.family(config.model.family).copies(model_config(export.config))
    for role in ROLES:
        # Stacks without a section of their own share the decoder's.
        section = export.config.model.get(role) or export.config.model.get("decoder")
        additions = (section or {}).get(lora.NAME)
        if additions and additions.rank:
            low_rank = dataclass_from(Lora, additions, f"model.{role}.{lora.NAME}")
            copied = [copy for copy in copies if copy.source.startswith(f"{role}/")]
            for part in (role, *(copy.path.partition("/")[0] for copy in copied)):
                if "layers" in params.get(part, {}):
                    params[part] = lora.merged(params[part], low_rank)
        if lora.NAME in (config.model.get(role) or {}):
            config.model[role][lora.NAME].rank = 0
    return export._replace(config=config.lock(), params=params)


def export_model(
    folder: str | os.PathLike[str],
    config: ConfigDict,
    encoder: TextTokenizer,
    decoder: TextTokenizer,
    params: Params,
    about: About | None = None,
    more: Mapping[str, bytes] | None = None,
    base: Base | None = None,
) -> None:
    """Writes a trained model as one folder, atomically.

    Args:
      config: finalised, as in a run. about: for the model card. more: further files by their path
        in the folder, such as fitted priors. base: weights to leave out.
    Raises: WeightsError if the folder exists and is not empty or the parameters do not match the
      config.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WeightsError(f"{folder}: already exists; name a new folder")
    target = named_leaves(_target(build_model(config), None))
    leaves = {path: np.asarray(leaf) for path, leaf in named_leaves(params).items()}
    if odd := sorted(target.keys() ^ leaves.keys()):
        raise WeightsError(f"parameters that do not match the config: {', '.join(odd[:10])}")
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        (part / files.CONFIG).write_text(configs.to_json(config), encoding="utf-8")
        for role, tokenizer in zip(ROLES, (encoder, decoder), strict=True):
            tokenizer.save(part / TOKENIZER_FOLDER / role)
        metadata = {f"vocabulary_{t.role}": t.vocabulary_sha256 for t in (encoder, decoder)}
        weights = files.SAFETENSORS
        if base is not None:
            weights = ADAPTERS
            leaves = {path: leaf for path, leaf in leaves.items() if path not in base.leaves}
            metadata |= _about_base(base, folder)
        files.write_safetensors(part / weights, leaves, {"format": "jvae"} | metadata)
        elsewhere = None if base is None else base.where
        card = model_card.write(
            config, (encoder, decoder), params, about or About(), files.SUMS, elsewhere
        )
        (part / CARD).write_text(card, encoding="utf-8")
        further = dict(more or {})
        for name, data in further.items():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            (part / name).write_bytes(data)
        lines = [f"{_sha256(part / n)}  {n}\n" for n in sorted(_summed(part))]
        (part / files.SUMS).write_text("".join(lines), encoding="utf-8")
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def load_export(
    folder: str | os.PathLike[str],
    shardings: Any = None,
    base: Mapping[str, str] | None = None,
) -> Export:
    """Reads a model written by `export_model`; every hash is verified.

    Args:
      shardings: a tree like the parameters, or None for the default device.
      base: where to find the pretrained weights that the export leaves out, by key of `init`; only
        needed if they are neither where they were at the export nor in the same place relative to
        this folder.
    Raises: WeightsError for a file that is missing, changed or not listed, and for pretrained
      weights that are not found; ConfigError or DataError for a config or tokenizer that this
      version cannot read.
    """
    folder = Path(folder)
    file = folder / (ADAPTERS if (folder / ADAPTERS).is_file() else files.SAFETENSORS)
    try:
        _verify(folder)
        text = (folder / files.CONFIG).read_text(encoding="utf-8")
        config = _config(folder / files.CONFIG, text)
        about, tensors = files.metadata(file), files.read_file(file)
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{folder}: cannot be read ({error}); copy it again") from None
    encoder, decoder = (tokenizers.load(folder / TOKENIZER_FOLDER / r, r) for r in ROLES)
    check_vocabularies(folder, config, encoder, decoder, about)
    leaves, paths = named_leaves(_target(build_model(config), shardings)), Paths.of(text)
    leaves = {path: _as_stored(leaf, tensors.get(paths.old(path))) for path, leaf in leaves.items()}
    values = {} if file.name != ADAPTERS else _read_base(file, config, about, leaves, base or {})
    target = {path: leaf for path, leaf in leaves.items() if path not in values}
    try:
        table = _same_names(tensors, target, paths)
        values |= named_leaves(names.load_into(table, tensors, target))
    except WeightsError as error:
        raise WeightsError(f"{file}: {error}") from None
    return Export(config, encoder, decoder, names.nested({path: values[path] for path in leaves}))


def _as_stored(leaf: jax.ShapeDtypeStruct, tensor: files.Tensor | None) -> jax.ShapeDtypeStruct:
    """A shape struct in the number type of its tensor if that is narrower, as for parameters that
    no phase of training changed.
    """
    if tensor is None or str(tensor.dtype) not in ("bfloat16", "float16"):
        return leaf
    sharding = getattr(leaf, "sharding", None)
    return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(tensor.dtype), sharding=sharding)


def _about_base(base: Base, folder: Path) -> dict[str, str]:
    """The record of a base in the metadata of the weights of an export in `folder`."""
    relative = {
        key: os.path.relpath(name, folder.resolve())
        for key, name in base.where.items()
        if bases.is_folder(name)
    }
    return {
        "base": json.dumps(dict(base.where)),
        "base_relative": json.dumps(relative),
        "base_types": json.dumps({path: str(leaf.dtype) for path, leaf in base.leaves.items()}),
        "base_sha256": bases.digest(base.leaves),
    }


def _read_base(
    file: Path,
    config: ConfigDict,
    about: Mapping[str, str],
    target: Mapping[str, jax.ShapeDtypeStruct],
    moved: Mapping[str, str],
) -> dict[str, Array]:
    """The pretrained weights that an export names, in the number types used in training."""
    try:
        where, types = dict(json.loads(about["base"])), json.loads(about["base_types"])
        relative = dict(json.loads(about.get("base_relative", "{}")))  # older exports have none
        like = {
            path: jax.ShapeDtypeStruct(
                target[path].shape, types[path], sharding=getattr(target[path], "sharding", None)
            )
            for path in types
        }
        digest = about["base_sha256"]
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{file}: its record of pretrained weights is invalid ({error}); export it again"
        ) from None
    if odd := sorted(moved.keys() - where.keys()):
        raise WeightsError(f"{file}: has no base {odd[0]!r}; it has {', '.join(sorted(where))}")
    base: dict[str, Array] = {}
    for key, name in where.items():
        try:
            where[key] = (
                os.fspath(moved[key])
                if key in moved
                else _base_folder(name, file.parent.resolve() / relative.get(key, name))
            )
            base |= bases.read(config, {key: where[key]}, like)
        except WeightsError as error:
            raise WeightsError(
                f"{file}: its pretrained weights cannot be read: {error}. {_base_hint(key)}"
            ) from None
    if base.keys() != like.keys() or bases.digest(base) != digest:
        names = ", ".join(where.values())
        raise WeightsError(f"{file}: {names} is not what it was trained on. {_base_hint(*where)}")
    return base


def _base_folder(name: str, relative: Path) -> str:
    """A hub name as it is; for a folder, where it is now: in its old place or at `relative`.

    Raises: WeightsError for a folder that is in neither place; it is never looked up on the hub.
    """
    # os.path, as Path.is_dir raises for a folder below one that this user must not read.
    if not bases.is_folder(name) or os.path.isdir(name):
        return name
    if os.path.isdir(relative):
        return str(relative)
    raise WeightsError(f"{name}: the folder was moved or deleted, or is on another machine")


def _base_hint(*keys: str) -> str:
    folders = ", ".join(f"{key!r}: FOLDER" for key in keys)
    return (
        f"To read them from another folder, call jvae.load(..., base={{{folders}}}) with the "
        "folder that holds config.json and the weights"
    )


def _config(path: Path, text: str) -> ConfigDict:
    try:
        return configs.stored(text)
    except ConfigError as error:
        raise WeightsError(f"{path}: {error}; copy or export the folder again") from None


def check_vocabularies(
    folder: Path,
    config: ConfigDict,
    encoder: TextTokenizer,
    decoder: TextTokenizer,
    about: Mapping[str, str] | None = None,
) -> None:
    """Compares both tokenizers with the model that will read their tokens.

    Args:
      config: finalised. about: the metadata of an export, which may lack the vocabularies.
    Raises: WeightsError if a tokenizer has more tokens than the model, or other tokens than when
      exported.
    """
    for tokenizer in (encoder, decoder):
        # If one stack reads both sides there is only one section.
        role = tokenizer.role if tokenizer.role in config.model else "decoder"
        section = config.model.get(role)
        size = section.get("vocab") if section is not None else None
        if isinstance(size, int) and tokenizer.vocab_size > size:
            raise WeightsError(
                f"{folder}: its {tokenizer.role} tokenizer has {tokenizer.vocab_size:,} tokens and "
                f"the model {size:,}; put back the tokenizer that it was trained with"
            )
        then = (about or {}).get(f"vocabulary_{tokenizer.role}")
        if then is not None and then != tokenizer.vocabulary_sha256:
            raise WeightsError(
                f"{folder}: the {tokenizer.vocab_size:,} tokens of its {tokenizer.role} tokenizer "
                f"are not those it was exported with (SHA-256 {tokenizer.vocabulary_sha256[:12]}, "
                f"at the export {then[:12]}); put that tokenizer back"
            )


_SAME = names.Transform(lambda arrays, shape: arrays[0], lambda leaf: [leaf])


def _same_names(tensors: files.Tensors, target: Params, paths: Paths) -> NameTable:
    """Maps every parameter to the tensor with its path and shape."""

    def rule(path: str, leaf: jax.ShapeDtypeStruct) -> NameRule:
        # Older versions wrote scalars with shape (1,).
        name = paths.old(path)
        old = leaf.shape == () and name in tensors and tensors[name].shape == (1,)
        return NameRule(path, (name,), names.flat(1) if old else _SAME)

    return NameTable(tuple(rule(path, leaf) for path, leaf in named_leaves(target).items()))


def _verify(folder: Path) -> None:
    """Raises WeightsError unless the folder matches its list of hashes."""
    sums = folder / files.SUMS
    if not sums.is_file():
        reason = f"has no {files.SUMS}; expected a folder that jvae exported"
        raise WeightsError(f"{folder}: {reason if folder.is_dir() else 'no such folder'}")
    digests: dict[str, str] = {}
    lines = sums.read_bytes().decode("utf-8", "replace").split("\n")
    for number, line in enumerate(lines[:-1], 1):
        match = _SUM_LINE.fullmatch(line)
        if match is None:
            raise WeightsError(f"{sums}:{number}: expected a SHA-256, two spaces and a file name")
        digests[match[2]] = match[1]
    contents = _summed(folder)
    complete = lines[-1] == "" and len(digests) == len(lines) - 1
    weights = ADAPTERS if ADAPTERS in contents else files.SAFETENSORS
    digests.pop(CARD, None)  # older exports list it
    if missing := sorted(({weights, *NEEDED} | set(digests)) - contents):
        raise WeightsError(f"{folder}: lacks {', '.join(missing)}; copy or export it again")
    if not complete or (unlisted := sorted(contents - set(digests))):
        what = ", ".join(unlisted) if complete else "the end of the list"
        raise WeightsError(f"{sums}: does not list {what}; copy or export the folder again")
    for file, digest in digests.items():
        if _sha256(folder / file) != digest:
            raise WeightsError(
                f"{folder / file}: is not as it was exported (its SHA-256 differs from "
                f"{sums.name}). Copy it again; after an intentional change, write its new checksum "
                f"into {sums.name}"
            )


def _summed(folder: Path) -> set[str]:
    """The files of an export that are hashed: all except the card, which people edit, and hidden
    files, which hubs and version control add.
    """
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    visible = {n.as_posix() for n in names if not any(part.startswith(".") for part in n.parts)}
    return visible - {files.SUMS, CARD}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
