"""Checks tokenizer files, whose content the backend trusts.

A token id of 4e9 would make the backend allocate a table of that size, which kills the process. A
pattern with nested repetition would panic in the middle of a corpus. An entry without an id would
get another one.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from jvae.errors import DataError

MOST_IDS = 1 << 22  # four times the largest vocabulary in use
# Texts on which patterns with nested repetition take exponential time.
_PROBES = tuple(f"{letter * 64}{end}" for letter in "a1 -" for end in "a!")


def checked_vocabulary(path: Path) -> dict[str, int]:
    """Reads and checks a vocab.json; returns ids by token.

    Raises: DataError.
    """
    return _checked_ids(path, "the vocabulary", read(path))


def open_file(path: Path) -> Tokenizer:
    """Opens a tokenizer.json.

    Raises: DataError if it is damaged, has invalid ids, or has a pattern that takes exponential
      time.
    """
    tree = read(path)
    model = tree.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, dict):
        _checked_ids(path, "the vocabulary", vocab)
    elif not isinstance(vocab, list) or len(vocab) > MOST_IDS:
        raise DataError(f"{path}: its model has no vocabulary; copy it again")
    added = tree.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise DataError(f"{path}: added_tokens is not a list of tokens; copy it again")
    ids = _checked_ids(path, "added_tokens", {str(t.get("content")): t.get("id") for t in added})
    with backend_errors(str(path)), _no_panic_notes():
        backend = Tokenizer.from_file(str(path))
        for text in _PROBES:  # not `encode`: a closed vocabulary may not contain them
            if backend.normalizer is not None:
                text = backend.normalizer.normalize_str(text)
            if backend.pre_tokenizer is not None:
                backend.pre_tokenizer.pre_tokenize_str(text)
    for token, number in ids.items():
        if backend.token_to_id(token) != number:
            raise DataError(
                f"{path}: {token!r} has id {number} in added_tokens and another in the vocabulary; "
                "copy it again"
            )
    return backend


@contextlib.contextmanager
def backend_errors(where: str) -> Iterator[None]:
    """Converts any error of the backend to a DataError. Its panics are bare BaseExceptions."""
    try:
        yield
    except DataError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{where}: the tokenizer cannot be used ({reason}); copy it again"
        ) from None


def read(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a tokenizer file. Raises: DataError."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{path}: the tokenizer file cannot be read ({reason}); copy it again"
        ) from None
    if not isinstance(tree, dict):
        raise DataError(f"{path}: is not a JSON object; copy it again")
    return tree


def _checked_ids(path: Path, where: str, vocab: dict[str, Any]) -> dict[str, int]:
    """Raises: DataError unless ids are distinct whole numbers below `MOST_IDS`."""
    tokens: dict[int, str] = {}
    for token, number in vocab.items():
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < MOST_IDS:
            raise DataError(
                f"{path}: {where} gives {token!r} the id {str(number)[:40]}; expected 0 to "
                f"{MOST_IDS - 1:,}. Copy the file again"
            )
        if number in tokens:
            raise DataError(
                f"{path}: {where} gives {tokens[number]!r} and {token!r} the same id {number}; "
                "copy the file again"
            )
        tokens[number] = token
    return vocab


@contextlib.contextmanager
def _no_panic_notes() -> Iterator[None]:
    """Hides the messages that a panic writes to file descriptor 2."""
    try:
        kept = os.dup(2)
    except OSError:  # closed
        yield
        return
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
