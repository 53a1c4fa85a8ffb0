"""Checks that a reopened run is still the same run: its text, tokenizers and random stream.

Every checkpoint's meta has a record of these. Commands that read data or draw random numbers
compare it with the current state and reject a difference, naming it. Files are compared by content,
so a corpus may move or change its format. The random stream is compared but not fixed: users may
choose another key implementation for speed. Different library versions only cause a warning.
"""

import logging
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple, TypedDict

import jax
from ml_collections import ConfigDict

import jvae
from jvae import config as configs
from jvae.data.content import content
from jvae.data.corpus import Corpus, cache_dir
from jvae.data.sources import Lines
from jvae.data.tokenizers import TextTokenizer
from jvae.errors import CheckpointError
from jvae.parallel import processes
from jvae.runs import workdir
from jvae.runs.checkpoint import Checkpoints, Meta

log = logging.getLogger(__name__)

KEY = "identity"  # key in a checkpoint's meta
# JAX settings that determine what a seed draws.
RANDOM = ("jax_default_prng_impl", "jax_threefry_partitionable", "jax_random_seed_offset")
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
Splits = Mapping[str, Lines | Corpus]


class ContentRecord(TypedDict):
    """The `Content` of a split."""

    sha256: str
    examples: int


class Record(TypedDict):
    """Identity of a run in a checkpoint's meta."""

    data: dict[str, ContentRecord]  # by split
    held_out: list[str]
    tokenizers: dict[str, str]  # fingerprint by role
    random: dict[str, object]
    versions: dict[str, str]


class Saved(NamedTuple):
    """The metas of a run's checkpoints: of the newest and of the best one."""

    folder: Path
    metas: tuple[Meta, ...]
    best: int | None  # step

    @property
    def last(self) -> Meta:
        """Meta of the newest checkpoint."""
        return self.metas[0]

    @property
    def params_step(self) -> int:
        """The step of the parameters that evaluation uses: those of the best checkpoint."""
        return self.last["step"] if self.best is None else self.best

    @property
    def configs(self) -> list[ConfigDict]:
        """The config of each checkpoint."""
        return [configs.stored(meta["config"]) for meta in self.metas]

    @property
    def records(self) -> list[Record]:
        """The record of each checkpoint that has one."""
        return [meta[KEY] for meta in self.metas if KEY in meta]


def saved(folder: Path) -> Saved | None:
    """Reads the metas of the run in a folder; None if it has no checkpoint.

    Raises: CheckpointError if no checkpoint can be read.
    """
    if not workdir.checkpoints(folder):
        return None
    with Checkpoints(folder, read_only=True) as ckpts:
        kinds = [best for best in (False, True) if (ckpts.best if best else ckpts.latest)()]
        metas = []
        for best in kinds:
            try:
                metas.append(ckpts.meta(best=best))
            except CheckpointError:
                if best == kinds[-1] and not metas:
                    raise
        return Saved(folder, tuple(metas), ckpts.best())


def record(
    config: ConfigDict, splits: Splits, encoder: TextTokenizer, decoder: TextTokenizer
) -> Record:
    """The record of a run that is open now, as JSON types."""
    return {
        "data": _data(config, splits),
        "held_out": held_out(splits),
        "tokenizers": {tokenizer.role: tokenizer.fingerprint for tokenizer in (encoder, decoder)},
        "random": _random(),
        "versions": _versions(),
    }


def held_out(splits: Splits) -> list[str]:
    """The splits that are held out of train."""
    return [
        name
        for name, split in splits.items()
        if name != "train" and isinstance(split, Corpus) and split.keep_d is not None
    ]


def check_data(run: Saved, config: ConfigDict, splits: Splits) -> None:
    """Compares text and random stream with the records of a run; warns about other versions.

    Raises: CheckpointError naming every difference.
    """
    if not run.records:
        _warn(
            f"{run.folder}: was written before runs kept a record of their data; whether text and "
            "random stream are those of its training cannot be checked"
        )
        return
    data, random = _data(config, splits), _random()
    faults: dict[str, None] = {}  # faults of both checkpoints, each listed once
    advice = []
    for stored in run.records:
        moved = {name: was for name, was in stored["data"].items() if data.get(name) != was}
        faults |= dict.fromkeys(
            f"{name} has {_shown(data.get(name))}, in training it had {_shown(was)}"
            for name, was in moved.items()
        )
        if cut := [name for name in stored["held_out"] if name in moved]:
            cut_out = f"what is held out of train ({', '.join(cut)}) may now have been trained on"
            faults[cut_out] = None
        if moved:
            advice.append(f"bring back the text of its training{_where(config)}")
        for name, was in stored["random"].items():
            if random.get(name) != was:
                faults[f"{name} is {random.get(name)!r}, in training it was {was!r}"] = None
                advice.append(f"set {name.upper()}={was}")
    _refuse(run.folder, list(faults), advice)
    _check_versions(run)


def check_tokenizers(
    run: Saved, encoder: TextTokenizer, decoder: TextTokenizer, error: type = CheckpointError
) -> None:
    """Compares both tokenizers with the records of a run.

    Raises: `error` naming those that differ.
    """
    faults: dict[str, None] = {}
    for stored in run.records:
        for opened in (encoder, decoder):
            was = stored["tokenizers"][opened.role]
            if opened.fingerprint != was:
                faults[
                    f"the {opened.role} tokenizer ({opened.name}, SHA-256 "
                    f"{opened.fingerprint[:12]}) is not that of training ({was[:12]})"
                ] = None
    _refuse(run.folder, list(faults), [f"put its tokenizers folder back into {run.folder}"], error)


def _refuse(
    folder: Path, faults: Sequence[str], advice: Sequence[str], error: type = CheckpointError
) -> None:
    if faults:
        *earlier, last = dict.fromkeys(advice)
        steps = "; ".join([*earlier, last])
        raise error(
            f"{folder}: {'; '.join(faults)}. To resume this run: {steps}. To start a new run, "
            "give another --workdir"
        )


def _data(config: ConfigDict, splits: Splits) -> dict[str, ContentRecord]:
    cache = cache_dir(config.data.cache)
    return {n: ContentRecord(**content(split, cache)._asdict()) for n, split in splits.items()}


def _shown(split: ContentRecord | None) -> str:
    if split is None:
        return "no examples"
    return f"{split['examples']:,} examples (SHA-256 {split['sha256'][:12]})"


def _where(config: ConfigDict) -> str:
    files = [str(name) for part in ("train", "valid", "test") for name in config.data[part]]
    return f" (now {', '.join(files)})" if files else ""


def _random() -> dict[str, object]:
    return {name: getattr(jax.config, name) for name in RANDOM if hasattr(jax.config, name)}


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in LIBRARIES} | {"jvae": jvae.__version__}


def _check_versions(run: Saved) -> None:
    now = _versions()
    changed = {
        f"{name} {was} -> {now.get(name)}"
        for stored in run.records
        for name, was in stored["versions"].items()
        if now.get(name) != was
    }
    if changed:
        _warn(
            f"{run.folder}: written with other versions ({', '.join(sorted(changed))}); last "
            "digits may differ"
        )


def _warn(message: str) -> None:
    if processes.first():
        log.warning(message)
