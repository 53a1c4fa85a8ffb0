"""Uploads trained models to the Hugging Face hub, as exports."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from jvae import hub
from jvae.errors import WeightsError
from jvae.pretrained import files
from jvae.runs import model_card
from jvae.runs.model_card import About
from jvae.runs.workdir import read_text


def push(
    write: Callable[..., None],
    name: str,
    *,
    private: bool = False,
    keep_card: bool = False,
    license: str = "",
    token: str | None = None,
    message: str = "",
) -> str:
    """Uploads a model. See `jvae.inference.text_vae.LoadedVAE.push_to_hub`.

    Args:
      write: function that writes the model as an export into a new folder; it is called with the
        folder and the keywords `name` and `license` for its card.
    """
    if name.count("/") != 1:
        raise WeightsError(f"{name}: expected the name of a repository, such as user/my-model")
    message = message or "Upload a model of jvae"
    with tempfile.TemporaryDirectory(prefix="jvae-") as scratch:
        out = Path(scratch) / "model"
        write(out, name=name, license=license)
        return hub.upload(
            out,
            name,
            WeightsError,
            manifest=files.SUMS,
            kept=[model_card.FILE] if keep_card else [],
            private=private,
            token=token,
            message=message,
        )


def copy(folder: Path, out: str | os.PathLike[str], *, name: str, license: str) -> None:
    """Copies an export, with its card under another name."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns(".*"))
    card = Path(out) / model_card.FILE
    if card.is_file():
        text = model_card.renamed(read_text(card), About(name, license))
        card.write_text(text, encoding="utf-8")
