"""The text modes of the command line: sentences or latents in; text, JSON lines or arrays out."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jvae.data import sources
from jvae.errors import ConfigError, DataError
from jvae.inference.neighbors import nearest
from jvae.inference.text_vae import LoadedVAE
from jvae.latent.geometry import OFFSETS
from jvae.runs import loading, workdir
from jvae.validation.validate import validate

MAX_CHARS = 1_000_000  # of a line of input
BOM = "\ufeff"  # what some editors begin a file with
EDITS = ("interpolate", "analogy", "traverse", "neighbors")
FORMATS = {".txt": "text", ".json": "json", ".jsonl": "json", ".npz": "npz"}


class Options(NamedTuple):
    """What the flags of the text modes say."""

    text: tuple[str, ...] = ()
    input: str = ""
    out: str = ""
    format: str = ""
    n: int = 10
    steps: int = 11
    how: str = "linear"
    dims: tuple[int, ...] = ()
    corpus: str = ""
    k: int = 100
    seed: int = 0


class TextResult(NamedTuple):
    """What a mode has found: a record per line, its text, and latents where there are any."""

    records: list[dict[str, Any]]
    lines: list[str]
    z_egz: np.ndarray | None = None


class _Call(NamedTuple):
    vae: LoadedVAE
    options: Options
    settings: dict[str, Any]  # of decoding, as configured
    lines: list[str]
    sources: list[str] | None  # of conditional models, one per line


def run(mode: str, config: ConfigDict, folder: Path, options: Options) -> None:
    """Runs one mode on the best checkpoint of a run.

    Raises: ConfigError, DataError.
    """
    kind = _format(options)  # a wrong one is told before anything is read
    if options.text and options.input:
        raise ConfigError("--text and --input are both given; choose one")
    validate(config, saved=workdir.saved_config(folder), training=False)
    lines = [] if mode == "decode" else _lines(mode, options)
    vae = loading.load(folder, seed=options.seed)
    if mode in EDITS and not np.prod(vae.model.latent_shape):
        raise ConfigError(f"{mode} needs a latent, which the model of {folder} does not have")
    if mode == "sample" and vae.conditional and not lines:
        lines = _standard_input("a source")
    pairs = vae.conditional and mode != "sample"
    given, lines = pairs_of(lines) if pairs else (None, lines)
    settings = {k: v for k, v in config.decode.items() if k not in ("batch", "max_length")}
    _write(MODES[mode](_Call(vae, options, settings, lines, given)), kind, options.out)


# --------------------------------------------------------------------------------------------------
# The modes.


def _sample(call: _Call) -> TextResult:
    given = call.lines if call.vae.conditional else None
    z_egz = call.vae.sample_prior(call.options.n, sources=given)
    every = given and [source for source in given for _ in range(call.options.n)]
    return _told(z_egz, call.vae.decode(z_egz, sources=every, **call.settings))


def _reconstruct(call: _Call) -> TextResult:
    z_egz = call.vae.encode(call.lines, call.sources)
    told = _told(z_egz, call.vae.decode(z_egz, sources=call.sources))
    pairs = zip(call.lines, told.records, strict=True)
    return told._replace(records=[{"input": one} | record for one, record in pairs])


def _encode(call: _Call) -> TextResult:
    z_egz = call.vae.encode(call.lines, call.sources)
    records = [{"text": t, "z": z.tolist()} for t, z in zip(call.lines, z_egz, strict=True)]
    return TextResult(records, [json.dumps(one, ensure_ascii=False) for one in records], z_egz)


def _decode(call: _Call) -> TextResult:
    if call.vae.conditional:
        raise ConfigError("decode is for models without sources; use LoadedVAE.decode for others")
    z_egz = _latents(call.options.input)
    try:
        return _told(z_egz, call.vae.decode(z_egz))
    except ValueError as error:
        raise DataError(f"{call.options.input or 'standard input'}: {error}") from None


def _interpolate(call: _Call) -> TextResult:
    a, b = _exactly(call, "interpolate", 2)
    o, source = call.options, _one_source(call)
    texts = call.vae.interpolate(a, b, o.steps, source, how=o.how)
    return _records({"share": i / (o.steps - 1), "text": t} for i, t in enumerate(texts))


def _analogy(call: _Call) -> TextResult:
    a, b, c = _exactly(call, "analogy", 3)
    return _records([{"text": call.vae.analogy(a, b, c, _one_source(call))}])


def _traverse(call: _Call) -> TextResult:
    (text,) = _exactly(call, "traverse", 1)
    size = int(np.prod(call.vae.model.latent_shape))
    dims = call.options.dims or tuple(range(size))
    if bad := [dim for dim in dims if not 0 <= dim < size]:
        raise ConfigError(f"--dims has {bad[0]}; the latent has dimensions 0 to {size - 1}")
    told = call.vae.traverse(text, dims, OFFSETS, _one_source(call))
    return _records(
        (
            {"dim": dim, "offset": offset, "text": one}
            for dim, row in zip(dims, told, strict=True)
            for offset, one in zip(OFFSETS, row, strict=True)
        ),
        lambda r: f"{r['dim']}\t{r['offset']:+g}\t{r['text']}",
    )


def _neighbors(call: _Call) -> TextResult:
    if call.vae.conditional:
        raise ConfigError("neighbors is for models without sources; see LoadedVAE.neighbors")
    if not call.options.corpus:
        raise ConfigError("neighbors needs the sentences to look among: add --corpus=FILE")
    corpus = _read(call.options.corpus)
    query_egz = call.vae.encode(call.lines)
    places, distances = nearest(query_egz, call.vae.encode(corpus), call.options.n)
    return _records(
        (
            {"input": text, "text": corpus[place], "line": place + 1, "distance": distance}
            for text, *row in zip(call.lines, places.tolist(), distances.tolist(), strict=True)
            for place, distance in zip(*row, strict=True)
        ),
        lambda r: f"{r['distance']:.4f}\t{r['text']}",
    )


def _nll(call: _Call) -> TextResult:
    nats = call.vae.nll(call.lines, call.sources, k=call.options.k)
    pairs = zip(call.lines, nats.tolist(), strict=True)
    return _records(
        ({"text": text, "nll": value} for text, value in pairs),
        lambda r: f"{r['nll']:.4f}\t{r['text']}",
    )


MODES: dict[str, Callable[[_Call], TextResult]] = {
    "sample": _sample,
    "reconstruct": _reconstruct,
    "interpolate": _interpolate,
    "analogy": _analogy,
    "traverse": _traverse,
    "neighbors": _neighbors,
    "encode": _encode,
    "decode": _decode,
    "nll": _nll,
}


def _told(z_egz: np.ndarray, texts: Sequence[str]) -> TextResult:
    return _records({"text": text} for text in texts)._replace(z_egz=z_egz)


def _records(
    records: Iterable[dict[str, Any]], line_of: Callable[[dict[str, Any]], str] | None = None
) -> TextResult:
    records = list(records)
    lines = [line_of(one) if line_of else one["text"] for one in records]
    return TextResult(records, [workdir.one_line(one) for one in lines])


# --------------------------------------------------------------------------------------------------
# In.


def _lines(mode: str, options: Options) -> list[str]:
    """Sentences of --text, of the file of --input, or of standard input."""
    if options.text:
        return list(options.text)
    if options.input:
        return _read(options.input)
    return [] if mode == "sample" else _standard_input(f"to {mode}")


def _standard_input(what: str) -> list[str]:
    try:
        lines = [] if sys.stdin is None else [one.strip("\r\n" + BOM) for one in sys.stdin]
    except UnicodeDecodeError as error:
        raise DataError(f"standard input: is no UTF-8 text ({error.reason})") from None
    if not lines:
        what = f"nothing {what}" if what.startswith("to ") else f"{what} is needed"
        raise ConfigError(f"{what}: give --text='...', --input=FILE or lines on standard input")
    return lines


def _read(path: str) -> list[str]:
    lines = []
    for number, raw in sources.raw_lines(path, MAX_CHARS):
        if isinstance(raw, sources.BadLine):
            raise DataError(f"{path}:{number}: {raw.detail}")
        try:
            lines.append(raw.decode("utf-8").strip("\r\n" + BOM))
        except UnicodeDecodeError as error:
            raise DataError(f"{path}:{number}: is no UTF-8 text ({error.reason})") from None
    return lines


def _latents(path: str) -> np.ndarray:
    """Latents of an .npz file, or of JSON lines such as mode encode writes."""
    where = path or "standard input"
    try:
        if path.endswith(".npz"):
            with np.load(path) as arrays:
                return arrays["z"]
        lines = _read(path) if path else _standard_input("to decode")
        return np.array([json.loads(one)["z"] for one in lines], np.float32)
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise DataError(
            f"{where}: no latents ({error}); expected what --mode=encode writes: an .npz with "
            "array z, or one JSON object with key z per line"
        ) from None


def pairs_of(lines: list[str]) -> tuple[list[str], list[str]]:
    """Sources and texts of lines that hold both."""
    for i, one in enumerate(lines):
        if one.count("\t") != 1:
            raise ConfigError(
                f"line {i + 1} has {one.count(chr(9))} tabs: this model reads a source too; "
                "expected source<TAB>text"
            )
    pairs = [one.split("\t") for one in lines]
    return [source for source, _ in pairs], [text for _, text in pairs]


def _exactly(call: _Call, mode: str, n: int) -> list[str]:
    if len(call.lines) != n:
        words = {1: "one sentence", 2: "two sentences", 3: "three sentences, a : b as c : ?"}[n]
        raise ConfigError(f"{mode} takes {words}, not {len(call.lines)}: give --text for each")
    return call.lines


def _one_source(call: _Call) -> str | None:
    if call.sources and len(set(call.sources)) > 1:
        raise ConfigError("edits stay with one source: give the same one with each text")
    return call.sources[0] if call.sources else None


# --------------------------------------------------------------------------------------------------
# Out.


def _format(options: Options) -> str:
    kind = options.format or FORMATS.get(Path(options.out).suffix, "text")
    if kind == "npz" and not options.out:
        raise ConfigError("npz is for files: add --out=FILE.npz")
    return kind


def _write(found: TextResult, kind: str, out: str) -> None:
    """Writes a whole file, or standard output."""
    if kind == "npz":
        _write_arrays(found, Path(out))
        return
    lines = found.lines
    if kind == "json":
        lines = [json.dumps(one, ensure_ascii=False) for one in found.records]
    text = "".join(f"{one}\n" for one in lines)
    if out:
        _checked(Path(out), lambda path: workdir.write_text(path, text))
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except UnicodeEncodeError as error:
        raise DataError(
            f"standard output takes {error.encoding} alone; use --out=FILE, or set "
            "PYTHONIOENCODING=utf-8"
        ) from None
    except BrokenPipeError:  # as under `| head`: who reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write_arrays(found: TextResult, path: Path) -> None:
    """The columns of the records as arrays; latents under `z`."""
    names = [name for name in (found.records[0] if found.records else ()) if name != "z"]
    arrays = {name: np.array([one[name] for one in found.records]) for name in names}
    if found.z_egz is not None:
        arrays["z"] = found.z_egz

    def save(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        with part.open("wb") as file:
            np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
        os.replace(part, path)

    _checked(path, save)


def _checked(path: Path, write: Callable[[Path], None]) -> None:
    try:
        write(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None
