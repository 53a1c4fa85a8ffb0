"""Resolves the name of a model: a folder, a model that ships with jvae, or a repository on the
Hugging Face hub. They are tried in this order, so a local folder always takes precedence.
"""

import difflib
import logging
import os
from pathlib import Path

from jvae import hub
from jvae.errors import WeightsError
from jvae.pretrained import files

log = logging.getLogger(__name__)

SHIPPED = Path(__file__).parents[1] / "shipped"


def shipped() -> list[str]:
    """The names of the models that ship with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{files.CONFIG}"))


def folder_of(name: str | os.PathLike[str]) -> Path:
    """The folder of a model, downloaded from the hub if no local model has that name.

    Raises: WeightsError listing all places that were tried.
    """
    text = os.fspath(name)
    try:
        if "\0" in text:
            raise ValueError("it holds a NUL character")
        folder = Path(text).expanduser()
        exists = folder.exists()
    except (RuntimeError, OSError, ValueError) as error:  # an unknown ~user or too long a name
        raise WeightsError(f"{text[:80]!r}: cannot be a folder ({error})") from None
    if exists:
        if not isinstance(name, os.PathLike):  # a path can only be a folder: nothing was chosen
            log.info("model %s: the folder %s", text, folder.absolute())
        return folder
    if text in shipped():
        log.info("model %s: ships with jvae", text)
        return SHIPPED / text
    if isinstance(name, os.PathLike) or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise WeightsError(f"{text}: no such folder; expected the folder of a run or of an export")
    tried = f"no folder here, no model that ships with jvae ({', '.join(shipped())})"
    if near := difflib.get_close_matches(text, shipped(), n=1):
        raise WeightsError(f"{text}: {tried}; did you mean {near[0]!r}?")
    folder = hub.folder(text, WeightsError, tried, manifest=files.SUMS)
    log.info("model %s: from the Hugging Face hub, in %s", text, folder)
    return folder
