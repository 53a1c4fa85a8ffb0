"""Seeded damage to run folders, exports and tokenizer files, loaded in this process.

A damaged folder must give what the whole one gives, or one JvaeError: no traceback, no hang, no
result that is silently another one. A case is named by its seed and number, which repeat it.
"""

import contextlib
import functools
import hashlib
import json
import logging
import random
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvae import config as configs
from jvae.data import tokenizers
from jvae.errors import JvaeError
from jvae.pretrained.files import SUMS
from jvae.report.gather import read_report
from jvae.runs import build, exports, loading, metrics, workdir
from jvae.runs.checkpoint import Checkpoints
from jvae.runs.data import TOKENIZER_FOLDER
from jvae.tree import map_named, named_leaves

Tally = Counter[str]
SECONDS = 60  # that no case may take
TEXTS = ["word1 and more", "nothing of it", "", "word2" * 9, "\u00e9 \U0001f642"]
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 3, 2**31, 4_000_000_000, 2**70, 1e300, 0.5, float("nan")),
    *("", "x", "\ud83d", [], {}, [None], {"a": 1}, [[[[]]]], "9" * 5_000),
)
LINES = (b"\xff\xfe\n", b"{}\n", b"[1]\n", b'{"step": "3"}\n', b'{"step": Infinity}\n', b"\x00\n")


class Fault(AssertionError):
    """Damage that was neither survived nor refused."""


def fuzz_run_folders(seed: int, n: int) -> Tally:
    """Loads n damaged copies of a run with a best and a last checkpoint.

    Tokenizers are left whole: `fuzz_tokenizers` damages them. Returns: how the cases ended.
    """
    best, last = _params(0), _params(1)

    def load(folder: Path, _: str) -> str:
        with contextlib.suppress(JvaeError):
            metrics.read_lines(folder / "metrics.jsonl")
        with contextlib.suppress(JvaeError):
            workdir.saved_config(folder)
        read_report(folder / "eval" / "test.json", [])
        with _Warnings() as warnings:
            export = loading.read_model(folder)
        if configs.diff(export.config, _config()):
            raise Fault("another config")
        if _equal(export.params, best):
            return "same"
        # Of a best checkpoint that is gone as a whole nothing is left to warn of.
        gone = not (folder / "ckpt" / "best" / "2").is_dir()
        if _equal(export.params, last) and (warnings.seen or gone):
            return "last"
        raise Fault("other parameters")

    def pick(folder: Path) -> list[Path]:
        files = (path for path in folder.rglob("*") if path.is_file())
        return [path for path in files if TOKENIZER_FOLDER not in path.parts]

    return _fuzz(seed, n, _run(), pick, load)


def fuzz_exports(seed: int, n: int) -> Tally:
    """Loads n damaged copies of an export; every other one has the sum of its damaged file.

    With it, nothing says what the file held: then the model has to be of the right shapes.
    """

    def load(folder: Path, _: str) -> str:
        resummed = int(folder.name) % 2 == 1
        if resummed:
            _sum_again(folder)
        export = exports.load_export(folder)
        if _equal(export.params, _params(0)) and not configs.diff(export.config, _config()):
            return "same"
        if not resummed:
            raise Fault("another model past its sums")
        build.build_model(export.config)
        if not all(np.isfinite(leaf).all() for leaf in named_leaves(export.params).values()):
            raise Fault("parameters that are not finite")
        return "other"

    def pick(folder: Path) -> list[Path]:
        return [path for path in folder.rglob("*") if path.is_file()]

    return _fuzz(seed, n, _export(), pick, load)


def fuzz_tokenizers(seed: int, n: int) -> Tally:
    """Loads n damaged tokenizer files and reads text with those that load."""
    whole = tokenizers.load(_tokenizers() / "bpe", "decoder")
    want = [ids.tolist() for ids in whole.encode_batch(TEXTS)]

    def load(folder: Path, name: str) -> str:
        kind = "bpe" if "bpe" in name else "word"
        tokenizer = tokenizers.load(folder / kind, "decoder")
        if not 0 < tokenizer.vocab_size <= tokenizers.tokenizer_files.MOST_IDS:
            raise Fault(f"{tokenizer.vocab_size} entries")
        ids = [ids.tolist() for ids in tokenizer.encode_batch(TEXTS)]
        if any(not 0 <= i < tokenizer.vocab_size for token_ids in ids for i in token_ids):
            raise Fault("an id beyond the vocabulary")
        for token_ids in ids:
            tokenizer.decode(token_ids)
        return "same" if kind == "bpe" and ids == want else "other"

    return _fuzz(seed, n, _tokenizers(), lambda folder: sorted(folder.rglob("*.json")), load)


# --------------------------------------------------------------------------------------------------
# Damage.


def _fuzz(
    seed: int,
    n: int,
    whole: Path,
    pick: Callable[[Path], list[Path]],
    load: Callable[[Path, str], str],
) -> Tally:
    tally: Tally = Counter()
    with tempfile.TemporaryDirectory() as place:
        for i in range(n):
            rng, folder = random.Random(f"{seed} {i}"), Path(place) / str(i)
            shutil.copytree(whole, folder)
            path = rng.choice(sorted(pick(folder)))
            kind = rng.choice(sorted(DAMAGE))
            case = f"seed {seed}, case {i}: {kind} of {path.relative_to(folder)}"
            DAMAGE[kind](rng, path)
            try:
                with _time_limit(case):
                    tally[load(folder, str(path.relative_to(folder)))] += 1
            except Fault as fault:
                raise Fault(f"{case}: {fault}") from None
            except JvaeError as error:
                if not str(error).strip():
                    raise Fault(f"{case}: an empty message") from error
                tally["refused"] += 1
            except Exception as error:
                raise Fault(f"{case}: {type(error).__name__}: {error}") from error
            shutil.rmtree(folder, ignore_errors=True)
    return tally


def _flip(rng: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 20))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def _cut(rng: random.Random, path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data) + 1)])


def _delete(rng: random.Random, path: Path) -> None:
    path.unlink()
    if rng.random() < 0.3:
        shutil.rmtree(path.parent)


def _folder(rng: random.Random, path: Path) -> None:
    path.unlink()
    path.mkdir()


def _line(rng: random.Random, path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(LINES))
    path.write_bytes(b"".join(lines))


def _swap(rng: random.Random, path: Path) -> None:
    """Another value somewhere in a JSON file; a flipped bit in others."""
    try:
        tree = json.loads(path.read_bytes())
    except ValueError:
        return _flip(rng, path)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, child in items:
            places.append((node, key))
            if isinstance(child, dict | list):
                walk(child)

    if isinstance(tree, dict | list):
        walk(tree)
    if places:
        node, key = rng.choice(places)
        node[key] = rng.choice(VALUES)
        if isinstance(node, dict) and rng.random() < 0.3:
            del node[key]
    path.write_text(json.dumps(tree))


def _deep(rng: random.Random, path: Path) -> None:
    path.write_text(rng.choice(("[", '{"a":')) * 100_000)


DAMAGE: dict[str, Callable[[random.Random, Path], Any]] = {
    "bit flip": _flip,
    "cut": _cut,
    "loss": _delete,
    "folder in the place": _folder,
    "foreign line": _line,
    "swapped value": _swap,
    "depth": _deep,
}


@contextlib.contextmanager
def _time_limit(case: str) -> Iterator[None]:
    def late(*_: object) -> None:
        raise Fault(f"{case}: takes more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class _Warnings(logging.Handler):
    """Whether anything was warned of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seen = False

    def emit(self, record: logging.LogRecord) -> None:
        self.seen = True

    def __enter__(self) -> "_Warnings":
        self._logger = logging.getLogger("jvae")
        self._before = self._logger.level, self._logger.propagate
        self._logger.addHandler(self)
        self._logger.setLevel(logging.WARNING)
        self._logger.propagate = False
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.level, self._logger.propagate = self._before


# --------------------------------------------------------------------------------------------------
# What is whole.


@functools.cache
def _both_tokenizers() -> tuple[tokenizers.TextTokenizer, tokenizers.TextTokenizer]:
    encoder = tokenizers.train_word_level([f"word{i} and more" for i in range(9)], role="encoder")
    return encoder, encoder.for_role("decoder")


@functools.cache
def _config() -> Any:
    config = configs.load("optimus:tiny").copy_and_resolve_references()
    with config.unlocked():
        for side in ("encoder", "decoder"):
            config.model[side].update(layers=1, width=8, heads=2, mlp=8, positions=8)
            config.model[side].update(vocab=_both_tokenizers()[0].vocab_size, vocab_multiple=8)
    return config.lock()


@functools.cache
def _params(seed: int) -> Any:
    abstract = jax.eval_shape(build.build_model(_config()).init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    return map_named(lambda _, like: jnp.asarray(rng.normal(size=like.shape), like.dtype), abstract)


def _equal(params: Any, want: Any) -> bool:
    ours, theirs = named_leaves(params), named_leaves(want)
    return ours.keys() == theirs.keys() and all(
        np.array_equal(theirs[path], leaf) for path, leaf in ours.items()
    )


@functools.cache
def _root() -> Path:
    """Lives as long as this process."""
    place = tempfile.TemporaryDirectory()
    _KEPT.append(place)
    return Path(place.name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def _run() -> Path:
    folder = _root() / "run"
    workdir.claim(folder, _config())
    for tokenizer in _both_tokenizers():
        tokenizer.save(folder / TOKENIZER_FOLDER / tokenizer.role)
    meta = {"config": configs.to_json(_config())}
    with Checkpoints(folder) as ckpts:
        ckpts.save_best(2, {"params": _params(0)}, meta, 1.0)
        ckpts.save(4, {"params": _params(1)}, meta)
    lines = "".join(f'{{"step": {i}, "train/loss": 1.0}}\n' for i in range(4))
    (folder / "metrics.jsonl").write_text(lines)
    report = {"title": "t", "card": {}, "notes": [], "details": {}}
    row = {"value": 1.0, "se": None, "baseline": None, "unit": "", "note": ""}
    (folder / "eval").mkdir()
    (folder / "eval" / "test.json").write_text(json.dumps(report | {"metrics": {"kl": row}}))
    return folder


@functools.cache
def _export() -> Path:
    folder = _root() / "export"
    exports.export_model(folder, _config(), *_both_tokenizers(), _params(0))
    return folder


@functools.cache
def _tokenizers() -> Path:
    folder = _root() / "tokenizers"
    tokenizers.train_bpe(TEXTS, 300).save(folder / "bpe")
    _both_tokenizers()[1].save(folder / "word")
    return folder


def _sum_again(folder: Path) -> None:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n"
        for path in files
        if path.name != SUMS
    ]
    with contextlib.suppress(OSError):
        (folder / SUMS).write_text("".join(lines))
