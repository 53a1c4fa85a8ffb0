"""Writes the report of a run into its folder."""

import logging
from pathlib import Path

from ml_collections import ConfigDict

from jvae.errors import CheckpointError
from jvae.report import figures, page
from jvae.report.gather import gather
from jvae.runs.workdir import write_bytes, write_text

log = logging.getLogger(__name__)


def write(config: ConfigDict, folder: Path) -> Path:
    """Writes `report/*.png`, `report/*.svg` and `report/index.html`; returns the page's path.

    Parts that a run lacks (an evaluation, a latent, its data) are left out and listed on the page.

    Raises: CheckpointError if there is no checkpoint that fits, or the folder cannot be written.
    """
    content = gather(config, folder)
    out = folder / "report"
    try:
        out.mkdir(exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot write to {out}: {error}") from error
    log.info("report: drawing figures")
    drawn = figures.draw(content)
    for name, picture in drawn.items():
        write_bytes(out / f"{name}.png", picture.png)
        write_bytes(out / f"{name}.svg", picture.svg)
    write_text(out / "index.html", page.render(content, drawn))
    return out / "index.html"
