"""Example sentences of a demo: its neighbors and map use them, and its input fields start with
some.
"""

import logging
from pathlib import Path
from typing import NamedTuple

from jvae.cli import text_input
from jvae.errors import JvaeError
from jvae.inference.text_vae import LoadedVAE
from jvae.report.gather import sentences
from jvae.runs import loading, workdir

log = logging.getLogger(__name__)

MOST = 500
CHAINED = 100  # likewise, if each needs Langevin chains


class Examples(NamedTuple):
    """Sentences, the labels of each by kind, and where they come from."""

    texts: list[str]
    labels: dict[str, list[str]]
    origin: str


def read(vae: LoadedVAE, folder: Path, corpus: str = "") -> Examples:
    """The first sentences of a file if one is named, else of the test split, else samples.

    Raises: DataError for a file with lines that cannot be used.
    """
    config = workdir.saved_config(folder)
    most = MOST if vae.model.post.sampler is None else CHAINED
    if corpus:
        texts = text_input.from_file(corpus, text_input.reader_of(config.data))[:most]
        return Examples(texts, {}, f"{len(texts)} sentences of {Path(corpus).name}")
    if loading.is_run(folder) or not config.data.train:  # an export lacks its test sentences
        try:
            texts, _, labels = sentences(config, folder, most)
            labels = {kind: values for kind, values in labels.items() if len(set(values)) > 1}
            return Examples(texts, labels, f"{len(texts)} test sentences")
        except JvaeError as error:
            log.warning("the test sentences cannot be read: %s", error)
    texts = [text for text in dict.fromkeys(vae.sample(most)) if text]
    return Examples(texts, {}, f"{len(texts)} sentences sampled from the model")
