"""Digests of a split's examples, independent of the files that hold them."""

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from jvae.data.corpus import Corpus, reading_key, write_whole
from jvae.data.progress import Progress
from jvae.data.sources import Lines
from jvae.errors import DataError

_FORMAT = 1  # increase when the hashed content changes
_QUIET_S = 10.0  # progress is shown only for longer work


class Content(NamedTuple):
    """The digest of a split: equal digests mean the same examples in the same order."""

    sha256: str
    examples: int


def content(split: Lines | Corpus, cache: Path) -> Content:
    """Digests the texts of a split in order, each with its source if one is read.

    Labels, file names and file formats do not affect the digest. The digest of a corpus is cached,
    keyed by the digests of its files.
    """
    if isinstance(split, Lines):
        return _content(zip(split.text, split.source or [""] * len(split), strict=True))
    path = cache / "contents" / f"{_key(split)}.json"
    try:
        return Content(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # missing, or truncated by a full disk
        pass
    with Progress(f"comparing {split}", split.documents, quiet_s=_QUIET_S) as progress:

        def examples() -> Iterable[tuple[str, str]]:
            before = 0
            for located in split.examples():
                if split.keep_d is None or split.keep_d[located.document]:
                    yield located.example.text, located.example.source
                if located.document > before + 10_000:
                    progress.add(located.document - before)
                    before = located.document

        result = _content(examples())
    with contextlib.suppress(DataError):  # a read-only cache: the digest is recomputed next time
        write_whole(path, json.dumps(result._asdict()))
    return result


def _key(corpus: Corpus) -> str:
    files = [[file.sha256, reading_key(corpus.reader, file.path)] for file in corpus.files]
    digest = hashlib.sha256(json.dumps([_FORMAT, files], sort_keys=True).encode())
    if corpus.keep_d is not None:
        digest.update(corpus.keep_d.tobytes())
    return digest.hexdigest()[:32]


def _content(examples: Iterable[tuple[str, str]]) -> Content:
    digest, count = hashlib.sha256(), 0
    for text, source in examples:
        for part in (text.encode(), source.encode()):
            digest.update(b"%d:" % len(part))  # a text may contain any separator
            digest.update(part)
        count += 1
    return Content(digest.hexdigest(), count)
