"""Storage of fitted priors: a JSON and a safetensors file each, in `priors/` of a run or export.

The JSON file names the other one, whose name contains the hash of its content, so replacing the
JSON file replaces the prior atomically.
"""

import contextlib
import difflib
import functools
import hashlib
import json
import logging
import re
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from jvae import config as configs
from jvae.api import Params
from jvae.errors import ConfigError, WeightsError
from jvae.fitted import FITTED, Fitted
from jvae.pretrained import files
from jvae.pretrained.names import nested
from jvae.runs import bases, workdir
from jvae.tree import named_leaves

FOLDER = "priors"
FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][\w-]{0,63}")


def weights_digest(params: Params) -> str:
    """SHA-256 of all parameters by path, to check that a prior belongs to this model."""
    return bases.digest(named_leaves(params))


def check_name(name: str) -> None:
    """Raises: ConfigError unless it is valid as the name of a prior."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"--prior.name={name}: expected letters, digits, _ and -, at most 64 of them"
        )


def names(folder: Path) -> list[str]:
    """The fitted priors of a run or export."""
    return sorted(path.stem for path in (folder / FOLDER).glob("*.json"))


def encode(fitted: Fitted, weights: str) -> dict[str, bytes]:
    """The files of a prior; the JSON file comes last, because it refers to the other.

    Args:
      weights: digest of the parameters of the model.
    """
    arrays = {path: np.asarray(leaf) for path, leaf in named_leaves(fitted.params).items()}
    tensors = save({name: np.ascontiguousarray(a) for name, a in sorted(arrays.items())})
    digest = hashlib.sha256(tensors).hexdigest()
    file = f"{fitted.name}-{digest[:12]}{Path(files.SAFETENSORS).suffix}"
    content = {
        "format": FORMAT,
        "kind": fitted.kind,
        "options": vars(fitted.options),
        "shape": fitted.shape,
        "labels": fitted.labels,
        "weights": weights,
        "tensors": file,
        "sha256": digest,
        "about": fitted.about,
    }
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    return {file: tensors, f"{fitted.name}.json": text.encode()}


def write(folder: Path, fitted: Fitted, weights: str) -> Path:
    """Stores a prior in the folder of its run, replacing one with the same name; returns the path
    of its JSON file.

    Raises: ConfigError for an invalid name; CheckpointError if it cannot be written.
    """
    check_name(fitted.name)
    content = encode(fitted, weights)
    for name, data in content.items():
        workdir.write_bytes(folder / FOLDER / name, data)
    for old in (folder / FOLDER).glob(f"{fitted.name}-????????????.safetensors"):
        if old.name not in content:
            with contextlib.suppress(OSError):
                old.unlink()
    return folder / FOLDER / f"{fitted.name}.json"


def read(folder: Path, name: str, weights: str | None) -> Fitted:
    """Reads a prior of a run or export.

    Args:
      weights: digest of the parameters it will be used with; None to skip this check.
    Raises: ConfigError if there is no prior of that name; WeightsError if it is damaged or was
      fitted to another model.
    """
    path = folder / FOLDER / f"{name}.json"
    if not _NAME.fullmatch(name) or not path.is_file():
        options = names(folder)
        near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ConfigError(
            f"{folder}: no fitted prior {name!r}{hint} Priors: {', '.join(options) or 'none'}. Fit "
            f"one to the run with --mode=prior --prior.kind={'|'.join(FITTED)}"
        )
    content = files.read_json(path)
    try:
        if content["format"] != FORMAT:
            raise WeightsError(f"{path}: has format {content['format']!r}; update jvae")
        kind, tensors = str(content["kind"]), path.with_name(str(content["tensors"])).read_bytes()
        if hashlib.sha256(tensors).hexdigest() != content["sha256"]:
            raise WeightsError(f"{path}: {content['tensors']} has changed since it was written")
        options = configs.dataclass_from(FITTED[kind].options, content["options"], "options")
        groups, width = content["shape"]
        fitted = Fitted(
            name=name,
            kind=kind,
            options=options,
            shape=(int(groups), int(width)),
            labels=tuple(map(str, content["labels"])),
            params=nested(load(tensors)),
            about=dict(content["about"]),
        )
        fitted_to = content["weights"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: is damaged ({type(error).__name__}: {error}); fit it again"
        ) from None
    if weights is not None and fitted_to != weights:
        raise WeightsError(
            f"{path}: prior {name!r} was fitted to other weights (step "
            f"{fitted.about.get('step', '?')}) than those of this model; fit it again with "
            f"--mode=prior --prior.kind={kind} --prior.name={name}"
        )
    return fitted


class Opener:
    """Reads the priors of a folder by name, each once, for a model with these parameters."""

    def __init__(self, folder: Path, params: Params) -> None:
        self._folder, self._params = folder, params
        self._priors: dict[str, Fitted] = {}

    @functools.cached_property
    def _weights(self) -> str:
        return weights_digest(self._params)

    def __call__(self, name: str) -> Fitted:
        """Raises: as in `read`."""
        if name not in self._priors:
            self._priors[name] = read(self._folder, name, self._weights)
        return self._priors[name]

    def labelled(self) -> str:
        """See `only_labelled`."""
        return only_labelled(self._folder)


def labelled(folder: Path) -> list[str]:
    """The label-conditional priors of a run or export, whatever weights they were fitted to."""

    def knows(name: str) -> bool:
        try:
            text = (folder / FOLDER / f"{name}.json").read_text(encoding="utf-8")
            return bool(json.loads(text)["labels"])
        except (OSError, KeyError, TypeError, ValueError):
            return False  # `read` reports what is wrong with it

    return [name for name in names(folder) if knows(name)]


def only_labelled(folder: Path) -> str:
    """The prior to use for a label if no prior is named.

    Raises: ConfigError unless exactly one was fitted with labels.
    """
    candidates = labelled(folder)
    if not candidates:
        raise ConfigError(
            f"{folder}: a label needs a prior that was fitted with labels, and there is none; fit "
            "one with --mode=prior --prior.kind=gaussian --prior.label"
        )
    if len(candidates) > 1:
        raise ConfigError(
            f"{folder}: {len(candidates)} priors were fitted with labels: {', '.join(candidates)}; "
            "name one with --prior=NAME, or prior=NAME in Python"
        )
    return candidates[0]


def for_export(folder: Path, params: Params, exported: Params) -> dict[str, bytes]:
    """The files of all priors of a run that were fitted to these parameters, by path in an export.

    Priors of other checkpoints and damaged ones are left out with a warning.

    Args:
      exported: the same model in its exported form, to which the exported priors will belong.
    """
    weights, content = weights_digest(params), {}
    belonging = weights_digest(exported)
    for name in names(folder):
        try:
            fitted = read(folder, name, weights)
        except (ConfigError, WeightsError) as error:
            logging.getLogger(__name__).warning("left out of the export: %s", error)
            continue
        content |= {f"{FOLDER}/{file}": data for file, data in encode(fitted, belonging).items()}
    return content
