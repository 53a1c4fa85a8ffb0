"""Writes the report of a run into its folder."""

import logging
from pathlib import Path

from ml_collections import ConfigDict

from jvae.report import figures, page
from jvae.report.gather import gather
from jvae.runs.workdir import write_text

log = logging.getLogger(__name__)


def write(config: ConfigDict, folder: Path) -> Path:
    """Writes `report/*.png`, `report/*.svg` and `report/index.html`; returns the page's path.

    Parts that a run lacks (an evaluation, a latent, its data) are left out and listed on the page.

    Raises: CheckpointError if there is no checkpoint that fits.
    """
    content = gather(config, folder)
    out = folder / "report"
    out.mkdir(parents=True, exist_ok=True)
    log.info("report: drawing figures")
    drawn = figures.draw(content)
    for name, picture in drawn.items():
        (out / f"{name}.png").write_bytes(picture.png)
        (out / f"{name}.svg").write_bytes(picture.svg)
    write_text(out / "index.html", page.render(content, drawn))
    return out / "index.html"
