"""Parameters at step 0: loaded from a trained model or pretrained backbones if the config names
them, otherwise freshly initialised.
"""

import contextlib
import logging
import math
import re
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import jax
import optax
from jaxtyping import Array, Key
from ml_collections import ConfigDict
from tokenizers import AddedToken

from jvae import models
from jvae.api import Params
from jvae.data import special_tokens, tokenizers
from jvae.data.tokenizers import TextTokenizer
from jvae.errors import ConfigError, DataError, WeightsError
from jvae.models.family import Copy
from jvae.pretrained import backbones, files, names
from jvae.pretrained.files import Checkpoint
from jvae.pretrained.names import Vocab
from jvae.pretrained.parts import PretrainedPart
from jvae.runs import build, loading, model_names, start
from jvae.runs.build import Run
from jvae.runs.checkpoint import Checkpoints
from jvae.runs.published import fitted
from jvae.tree import map_named, named_leaves

log = logging.getLogger(__name__)

# A published vocabulary may be padded to hardware-friendly sizes, by less than this many rows.
PADDING = 128
# Texts on which two tokenizers must agree to count as the same.
_PROBES = ("The quick brown fox's 2nd café -- isn't it?", "  DON'T   stop , Élise !", "über-1,000")

Targets = Mapping[str, jax.ShapeDtypeStruct]  # parameters by path


def initial_params(
    run: Run, shardings: Any, key: Key[Array, ""], abstract: Params = None
) -> Params:
    """Parameters at step 0, on their devices; logs what was loaded and what was initialised.

    Every parameter is stored only once, on the devices of its sharding: loaded leaves are
    transferred from the host one by one, and only the others are initialised.

    Args:
      shardings: a tree like the parameters, or None for the default device.
      abstract: shapes and number types of the parameters; None for those of the model.
    Raises: ConfigError for a backbone that the family cannot use; WeightsError for weights that
      cannot be read, do not fit the model or do not match the tokenizer; CheckpointError for a run
      without a checkpoint.
    """
    target = jax.eval_shape(run.model.init, key) if abstract is None else abstract
    if shardings is not None:
        target = jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), target, shardings
        )
    leaves = named_leaves(target)
    loaded: dict[str, jax.Array] = {}
    config = run.config
    if config.init.model:
        loaded = _from_model(run, config.init.model, config.init.part, leaves)
        log.info("init.model: %s loaded from %s", _counted(loaded), config.init.model)
    for part, name in start.wanted(run.config):
        part_params = _load(run, part, name, leaves)
        log.info("init.%s: %s loaded from %s", part.key, _counted(part_params), name)
        loaded |= part_params
    if copied := _copied(run, loaded, leaves):
        log.info("copied from what was loaded: %s", _counted(copied))
        loaded |= copied
    fresh = _fresh(run, {p: leaf for p, leaf in leaves.items() if p not in loaded}, key)
    if loaded and fresh:
        log.info("initialised at random: %s", _counted(fresh))
    return map_named(lambda path, _: loaded[path] if path in loaded else fresh[path], target)


def initial_optimizer(run: Run, opt_state: optax.OptState) -> optax.OptState:
    """The optimizer state of the run that `init.model` names, with its schedules reset.

    Args:
      opt_state: a fresh optimizer state.
    Raises: ConfigError if `init.model` is not a run; CheckpointError if its state has other shapes.
    """
    config = run.config
    folder = model_names.folder_of(config.init.model) if config.init.model else None
    if folder is None or not loading.is_run(folder):
        raise ConfigError(
            "init.optimizer is on, but only runs store an optimizer state: init.model must be "
            f"the folder of a run, not {config.init.model!r}"
        )
    with Checkpoints(folder, read_only=True) as ckpts:
        target = {"opt_state": opt_state}
        state, _ = ckpts.restore(target, best=ckpts.best() is not None, partial=True)

    def begin(fresh: object, stored: object) -> object:
        return fresh if isinstance(fresh, optax.ScaleByScheduleState) else stored

    return jax.tree.map(
        begin,
        opt_state,
        state["opt_state"],
        is_leaf=lambda node: isinstance(node, optax.ScaleByScheduleState),
    )


def _from_model(run: Run, name: str, pattern: str, target: Targets) -> dict[str, jax.Array]:
    """Parameters of a run or export whose path matches; without a pattern it must have all."""
    selection = {path: leaf for path, leaf in target.items() if re.search(pattern, path)}
    if not selection:
        paths = ", ".join(list(target)[:3])
        raise ConfigError(f"init.part: {pattern!r} matches no parameter (paths: {paths} ...)")
    source = loading.read_model(name)
    read = {path.split("/")[0] for path in selection}
    for role, ours, theirs in (
        ("encoder", run.encoder, source.encoder),
        ("decoder", run.decoder, source.decoder),
    ):
        if role in read and ours.fingerprint != theirs.fingerprint:
            raise WeightsError(
                f"{name}: was trained with the {role} tokenizer {theirs.name}, this run has "
                f"{ours.name}; leave data.{role}_tokenizer empty to take that of init.model"
            )
    have = named_leaves(source.params)
    copied = tuple(copy.path for copy in _copies(run))
    selection = {p: leaf for p, leaf in selection.items() if p in have or not p.startswith(copied)}
    if missing := [path for path in selection if path not in have]:
        raise WeightsError(
            f"{name} ({source.config.model.family}) has no {', '.join(missing[:5])}"
            f"{' ...' if missing[5:] else ''}; choose the parameters to load from it with init.part"
        )
    for path, leaf in selection.items():
        if have[path].shape != leaf.shape:
            raise WeightsError(
                f"{name}: {path} is {list(have[path].shape)}, this model's {list(leaf.shape)}"
            )
    return {
        path: jax.device_put(have[path].astype(leaf.dtype), leaf.sharding)
        for path, leaf in selection.items()
    }


def _copies(run: Run) -> tuple[Copy, ...]:
    family = models.family(run.config.model.family)
    return family.copies(build.model_config(run.config))


def _copied(run: Run, loaded: Mapping[str, jax.Array], target: Targets) -> dict[str, jax.Array]:
    """Parameters that start as copies of loaded ones and were not loaded themselves."""
    copied: dict[str, jax.Array] = {}
    for copy in _copies(run):
        for path, leaf in target.items():
            source = copy.source + path.removeprefix(copy.path)
            if path in loaded or not path.startswith(copy.path) or source not in loaded:
                continue
            part = loaded[source][copy.first : copy.first + leaf.shape[0]]
            copied[path] = jax.device_put(part.astype(leaf.dtype), leaf.sharding)
    return copied


def check_backbones(config: ConfigDict) -> None:
    """Checks that pretrained backbones fit the model: files, sizes, names and shapes of all
    tensors. Does not read the tensor data.

    Raises: ConfigError for a backbone that the family cannot use; WeightsError for a folder that
      cannot be read, or has other sizes or tensors.
    """
    for part, name in start.wanted(config):
        checkpoint = files.open_checkpoint(name)
        _check_sizes(config, part, checkpoint)
        rows = backbones.sizes(part.backbone, checkpoint)["vocab"]
        like = ConfigDict(config.to_dict())
        for section in like.model.values():  # vocabularies depend on tokenizers, still unknown
            if isinstance(section, ConfigDict) and "vocab" in section:
                section.vocab = rows
        target = jax.eval_shape(build.build_model(like).init, jax.random.key(0))
        with _named(name):
            fitted(part, checkpoint, Vocab(rows, rows), named_leaves(target))


def _check_sizes(config: ConfigDict, part: PretrainedPart, checkpoint: Checkpoint) -> None:
    for section in part.sections:
        sizes = config.model[section]
        backbones.check_sizes(part.backbone, checkpoint, sizes, f"model.{section}")


@contextlib.contextmanager
def _named(name: str) -> Generator[None, None, None]:
    """Prefixes weight errors with the name of their source."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{name}: {error}") from None


def pretrained(config: ConfigDict) -> bool:
    """Whether step 0 starts from weights that were trained before."""
    return bool(config.init.model or start.wanted(config))


def _load(run: Run, part: PretrainedPart, name: str, target: Targets) -> dict[str, jax.Array]:
    checkpoint = files.open_checkpoint(name)
    config = run.config
    model = config.model
    _check_sizes(config, part, checkpoint)
    tokenizer = run.encoder if part.role == "encoder" else run.decoder
    rows = backbones.sizes(part.backbone, checkpoint)["vocab"]
    check_tokenizer(checkpoint, rows, tokenizer)
    ours = model[part.sections[0]].vocab
    with _named(name):
        table, tensors, like, fit = fitted(part, checkpoint, Vocab(rows, ours), target)
        leaves = named_leaves(names.load_into(table, tensors, like))
    if prefixes := backbones.prefixes(part.backbone, checkpoint):
        text = " and ".join(repr(prefix) for prefix in prefixes[:3])
        log.info("init.%s: names of %s without their prefix %s", part.key, name, text)
    if ours > rows:
        log.info(
            "init.%s: %d new vocabulary rows, set to the mean of all rows", part.key, ours - rows
        )
    elif ours < rows:
        log.info("init.%s: dropped %d embedding rows that have no token", part.key, rows - ours)
    if ignored := fit.ignored:
        text = ", ".join(ignored[:8]) + (", ..." if len(ignored) > 8 else "")
        log.info("init.%s: %d tensors of %s not used: %s", part.key, len(ignored), name, text)
    return leaves


def _fresh(run: Run, targets: Targets, key: Key[Array, ""]) -> dict[str, jax.Array]:
    """The requested leaves of a fresh model; the compiler drops all others."""
    if not targets:
        return {}

    def init(key: Array) -> dict[str, Array]:
        leaves = named_leaves(run.model.init(key))
        return {path: leaves[path].astype(like.dtype) for path, like in targets.items()}

    where = {path: leaf.sharding for path, leaf in targets.items()}
    if any(sharding is None for sharding in where.values()):
        return jax.jit(init)(key)
    return jax.jit(init, out_shardings=where)(key)


def _counted(leaves: Mapping[str, Array]) -> str:
    counts: dict[str, int] = {}
    for path, leaf in leaves.items():
        top = "/".join(path.split("/")[:2])
        counts[top] = counts.get(top, 0) + math.prod(leaf.shape)
    parts = ", ".join(f"{top} {count:,}" for top, count in counts.items())
    return f"{sum(counts.values()):,} parameters ({parts})"


def check_tokenizer(checkpoint: Checkpoint, rows: int, tokenizer: TextTokenizer) -> None:
    """Checks that a tokenizer belongs to weights with `rows` embedding rows.

    The tokenizer next to the weights always does. For another one, the checks are: sizes (only
    padding, start and end may exceed the last row, and fewer than `PADDING` rows may lack a token),
    then the special ids of config.json, then the tokenizer next to the weights if there is one.

    Raises: WeightsError.
    """
    beside = _tokenizer_beside(checkpoint, tokenizer)
    if beside is not None and beside.fingerprint == tokenizer.fingerprint:
        return
    what = f"{checkpoint.name}: does not belong to the {tokenizer.role} tokenizer {tokenizer.name}"
    size = tokenizer.vocab_size
    new = set(range(rows, size))
    if not new <= set(tokenizer.control_ids) or rows - size >= PADDING:
        raise WeightsError(
            f"{what}: {rows} embedding rows, {size} entries. Set data.{tokenizer.role}_tokenizer "
            "to the tokenizer of these weights"
        )
    special = {i for i, token in _added(tokenizer).items() if token.special}
    tokenizer_ids = {"pad_token_id": tokenizer.pad_id, "eos_token_id": tokenizer.end_id}
    for key in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        stated = checkpoint.config.get(key)
        ids = [i for i in (stated if isinstance(stated, list) else [stated]) if i is not None]
        if not ids or ids == [-1]:
            continue
        if not all(isinstance(i, int) and i in special for i in ids):
            raise WeightsError(f"{what}: {key} is {stated}, which is not a special token there")
        # Ids past the last row were added by jvae for the model.
        if key in tokenizer_ids and tokenizer_ids[key] < rows and tokenizer_ids[key] not in ids:
            raise WeightsError(f"{what}: {key} is {stated}, there it is {tokenizer_ids[key]}")
    if beside is None:
        return
    if _entries(beside) != _entries(tokenizer):
        differ = sorted(_entries(beside).items() ^ _entries(tokenizer).items(), key=lambda e: e[1])
        token, i = differ[0]
        raise WeightsError(
            f"{what}: the one next to the weights differs, first at id {i}: {token!r}"
        )
    for text in _PROBES:
        ours, theirs = (
            t.backend.encode(text, add_special_tokens=False) for t in (tokenizer, beside)
        )
        if ours.ids != theirs.ids:
            raise WeightsError(f"{what}: the one next to the weights splits {text!r} differently")


def _added(tokenizer: TextTokenizer) -> dict[int, AddedToken]:
    return tokenizer.backend.get_added_tokens_decoder()


def _entries(tokenizer: TextTokenizer) -> dict[str, int]:
    return tokenizer.backend.get_vocab(with_added_tokens=True)


def _tokenizer_beside(checkpoint: Checkpoint, like: TextTokenizer) -> TextTokenizer | None:
    """The tokenizer in the folder or repository of a checkpoint; None if there is none. It gets
    additional tokens only if `like` has them.
    """
    role, add = like.role, special_tokens.OF_GPT2[0] in _entries(like)
    if files.is_local(checkpoint.name):
        folder = Path(checkpoint.name).expanduser()
        if not tokenizers.has_tokenizer(folder):
            return None
        try:
            return tokenizers.load(folder, role, add=add)
        except DataError as error:
            raise WeightsError(f"{checkpoint.name}: {error}") from None
    try:
        return tokenizers.open_tokenizer(checkpoint.name, role, add)
    except DataError:
        return None
