"""The text modes of the command line: sentences or latents in; text, JSON lines or arrays out."""

import io
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import save

from jvae.cli import prior_flags, text_input
from jvae.errors import ConfigError, DataError
from jvae.inference import checks
from jvae.inference.checks import READ_BY, listed
from jvae.inference.neighbors import nearest
from jvae.inference.text_vae import LoadedVAE
from jvae.latent.geometry import OFFSETS
from jvae.latent.statistics import statistics
from jvae.runs import console, loading, output, workdir
from jvae.validation.validate import validate

log = logging.getLogger(__name__)

WRITING = ("sample", "reconstruct", "transfer", "interpolate", "analogy", "traverse", "decode")
EDITS = ("transfer", "interpolate", "analogy", "traverse", "neighbors")
FORMATS = {
    ".txt": "text",
    ".json": "json",
    ".jsonl": "json",
    ".npz": "npz",
    ".safetensors": "safetensors",
}
ACTIVE = 10  # dimensions that traverse moves if none are named
ARRAYS = ("npz", "safetensors")  # formats that need a file


class Options(NamedTuple):
    """The values of the text modes' flags."""

    text: tuple[str, ...] = ()
    input: str = ""
    out: str = ""
    format: str = ""
    n: int = 10
    steps: int = 11
    how: str = "linear"
    dims: tuple[int, ...] | None = ()  # empty: the most active; None: all
    corpus: str = ""
    k: int = 100
    seed: int = 0
    prior: str = ""
    label: str = ""
    strength: float = 1.0
    samples: int = 0
    of_prior: Mapping[str, str] = MappingProxyType({})  # values of --prior.KEY
    decode: Mapping[str, object] = MappingProxyType({})  # settings of decoding by name


class TextResult(NamedTuple):
    """The result of a mode: one record per line, its text, latents if there are any, and further
    arrays for the formats that can hold them.
    """

    records: list[dict[str, object]]
    lines: list[str]
    z_egz: np.ndarray | None = None
    more: Mapping[str, np.ndarray] = MappingProxyType({})


class _Call(NamedTuple):
    vae: LoadedVAE
    options: Options
    data: ConfigDict  # the section of the config, which sets how files are read
    settings: dict[str, Any]  # settings for decoding samples, as configured
    flag_settings: dict[str, Any]  # those set by flags, which apply to all other latents as well
    lines: list[str]
    sources: list[str] | None  # for conditional models, one per line


def run(mode: str, config: ConfigDict, folder: Path, options: Options) -> None:
    """Runs one mode on the best checkpoint of a run.

    Raises: ConfigError, DataError.
    """
    kind, flag_settings = format_of(options), decoding(mode, options.decode)  # fail before reading
    if options.text and options.input:
        raise ConfigError("--text and --input are both given; choose one")
    if mode == "transfer" and not options.label:
        raise ConfigError("transfer to which label? Add --label=LABEL")
    validate(config, saved=workdir.saved_config(folder), training=False)
    lines = [] if mode == "decode" else _lines(mode, config, options)
    vae = loading.load(folder, seed=options.seed)
    if options.prior:
        vae = vae.with_prior(options.prior)
        assert vae.fitted is not None
        fitted = prior_flags.using(vae.fitted, options.of_prior)
        label = options.label if mode != "transfer" else ""  # for transfer it is the target
        vae = vae.with_prior(fitted, label or None)
    if mode in EDITS and not np.prod(vae.model.latent_shape):
        raise ConfigError(f"{mode} needs a latent, which the model of {folder} does not have")
    if mode == "sample" and vae.conditional and not lines:
        lines = text_input.from_standard_input("a source")
    pairs = vae.conditional and mode != "sample"
    sources, lines = pairs_of(lines) if pairs else (None, lines)
    settings = checks.configured(config.decode, **flag_settings)
    call = _Call(vae, options, config.data, settings, flag_settings, lines, sources)
    write(MODES[mode](call), kind, options.out)


def decoding(mode: str, flags: Mapping[str, object]) -> dict[str, Any]:
    """Decoding settings from flags; a flag of a method other than greedy selects that method.

    Raises: ConfigError for a flag that has no effect in this mode or together with another flag.
    """
    if flags and mode not in WRITING:
        raise ConfigError(
            f"--{next(iter(flags))} has no effect in --mode={mode}; it applies to "
            f"{', '.join(WRITING)}"
        )
    asked = {READ_BY[name]: name for name in flags if name in READ_BY}
    if len(asked) > 1:
        raise ConfigError(
            f"--{asked['sample']} is for sampling and --{asked['beam']} for beam search"
        )
    for method, name in asked.items():
        if flags.get("method", method) != method:
            raise ConfigError(
                f"--{name} has no effect with --method={flags['method']}; it is read by {method}"
            )
    return dict(flags) if not asked else {"method": next(iter(asked))} | dict(flags)


# --------------------------------------------------------------------------------------------------
# The modes.


def _sample(call: _Call) -> TextResult:
    sources = call.lines if call.vae.conditional else None
    z_egz = call.vae.sample_prior(call.options.n, sources=sources)
    repeated = sources and [source for source in sources for _ in range(call.options.n)]
    return _decoded(z_egz, call.vae.decode(z_egz, sources=repeated, **call.settings))


def _reconstruct(call: _Call) -> TextResult:
    z_egz = call.vae.encode(call.lines, call.sources)
    result = _decoded(z_egz, call.vae.decode(z_egz, sources=call.sources, **call.flag_settings))
    pairs = zip(call.lines, result.records, strict=True)
    return result._replace(records=[{"input": line} | record for line, record in pairs])


def _transfer(call: _Call) -> TextResult:
    o = call.options
    texts = call.vae.transfer(call.lines, o.label, strength=o.strength, **call.flag_settings)
    pairs = zip(call.lines, texts, strict=True)
    return _records({"input": line, "text": text} for line, text in pairs)


def drawn(texts: Sequence[str], z_nkgz: np.ndarray) -> TextResult:
    """Posterior draws of texts, with their log-densities and other statistics."""
    records = [{"text": t, "z": z.tolist()} for t, z in zip(texts, z_nkgz, strict=True)]
    more = statistics(z_nkgz.reshape(-1, *z_nkgz.shape[2:]))
    return TextResult(records, [json.dumps(r, ensure_ascii=False) for r in records], z_nkgz, more)


def _encode(call: _Call) -> TextResult:
    if call.options.samples:
        draws = call.vae.posterior_samples(call.lines, call.options.samples, call.sources)
        return drawn(call.lines, draws)
    z_egz = call.vae.encode(call.lines, call.sources)
    records = [{"text": t, "z": z.tolist()} for t, z in zip(call.lines, z_egz, strict=True)]
    return TextResult(
        records, [json.dumps(record, ensure_ascii=False) for record in records], z_egz
    )


def _decode(call: _Call) -> TextResult:
    if call.vae.conditional:
        raise ConfigError("decode is for models without sources; use LoadedVAE.decode for others")
    z_egz = text_input.latents(call.options.input)
    try:
        return _decoded(z_egz, call.vae.decode(z_egz, **call.flag_settings))
    except ValueError as error:
        raise DataError(f"{call.options.input or 'standard input'}: {error}") from None


def _interpolate(call: _Call) -> TextResult:
    a, b = _exactly(call, "interpolate", 2)
    o, source = call.options, _one_source(call)
    texts = call.vae.interpolate(a, b, o.steps, source, how=o.how, **call.flag_settings)
    return _records({"share": i / (o.steps - 1), "text": t} for i, t in enumerate(texts))


def _analogy(call: _Call) -> TextResult:
    a, b, c = _exactly(call, "analogy", 3)
    return _records([{"text": call.vae.analogy(a, b, c, _one_source(call), **call.flag_settings)}])


def _traverse(call: _Call) -> TextResult:
    (text,) = _exactly(call, "traverse", 1)
    dims = _dims(call)
    rows = call.vae.traverse(text, dims, OFFSETS, _one_source(call), **call.flag_settings)
    return _records(
        (
            {"dim": dim, "offset": offset, "text": text}
            for dim, row in zip(dims, rows, strict=True)
            for offset, text in zip(OFFSETS, row, strict=True)
        ),
        lambda r: f"{r['dim']}\t{r['offset']:+g}\t{r['text']}",
    )


def _dims(call: _Call) -> Sequence[int]:
    """The dimensions to traverse. Raises: ConfigError for one out of range."""
    size, dims = int(np.prod(call.vae.model.latent_shape)), call.options.dims
    if dims is None or (not dims and size <= ACTIVE):
        return range(size)
    if bad := [dim for dim in dims if not 0 <= dim < size]:
        raise ConfigError(f"--dims has {bad[0]}; the latent has dimensions 0 to {size - 1}")
    if dims:
        return dims
    active = call.vae.active_dims(ACTIVE, _one_source(call))
    log.info(
        "traverse: the %d most active of %d dimensions: %s; --dims=all moves all of them",
        ACTIVE,
        size,
        ", ".join(map(str, active)),
    )
    return active


def _neighbors(call: _Call) -> TextResult:
    if call.vae.conditional:
        raise ConfigError("neighbors is for models without sources; see LoadedVAE.neighbors")
    if not call.options.corpus:
        raise ConfigError("neighbors needs sentences to search in: add --corpus=FILE")
    corpus = text_input.from_file(call.options.corpus, text_input.reader_of(call.data))
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
    "transfer": _transfer,
    "interpolate": _interpolate,
    "analogy": _analogy,
    "traverse": _traverse,
    "neighbors": _neighbors,
    "encode": _encode,
    "decode": _decode,
    "nll": _nll,
}


def _decoded(z_egz: np.ndarray, texts: Sequence[str]) -> TextResult:
    return _records({"text": text} for text in texts)._replace(z_egz=z_egz)


def _records(
    records: Iterable[dict[str, Any]], line_of: Callable[[dict[str, Any]], str] | None = None
) -> TextResult:
    records = list(records)
    lines = [line_of(record) if line_of else record["text"] for record in records]
    return TextResult(records, [workdir.one_line(line) for line in lines])


# --------------------------------------------------------------------------------------------------
# Input.


def _lines(mode: str, config: ConfigDict, options: Options) -> list[str]:
    """Sentences of --text, of the file of --input, or of standard input."""
    if options.text:
        return listed(options.text)
    if options.input:
        reader = text_input.reader_of(config.data, sources_alone=mode == "sample")
        return text_input.from_file(options.input, reader)
    return [] if mode == "sample" else text_input.from_standard_input(f"to {mode}")


def pairs_of(lines: list[str]) -> tuple[list[str], list[str]]:
    """Splits lines that hold a source and a text."""
    for i, line in enumerate(lines):
        if line.count("\t") != 1:
            raise ConfigError(
                f"line {i + 1} has {line.count(chr(9))} tabs: this model reads a source too; "
                "expected source<TAB>text"
            )
    pairs = [line.split("\t") for line in lines]
    return [source for source, _ in pairs], [text for _, text in pairs]


def _exactly(call: _Call, mode: str, n: int) -> list[str]:
    if len(call.lines) != n:
        words = {1: "one sentence", 2: "two sentences", 3: "three sentences, a : b as c : ?"}[n]
        raise ConfigError(f"{mode} takes {words}, not {len(call.lines)}: give --text for each")
    return call.lines


def _one_source(call: _Call) -> str | None:
    if call.sources and len(set(call.sources)) > 1:
        raise ConfigError("an edit uses a single source: give the same one with each text")
    return call.sources[0] if call.sources else None


# --------------------------------------------------------------------------------------------------
# Output.


def format_of(options: Options) -> str:
    """The format of the result. Raises: ConfigError for one that needs a file."""
    kind = options.format or FORMATS.get(Path(options.out).suffix, "text")
    if kind in ARRAYS and not options.out:
        raise ConfigError(f"format {kind} needs a file: add --out=FILE.{kind}")
    return kind


def write(result: TextResult, kind: str, out: str) -> None:
    """Writes the result to a file, atomically, or to standard output."""
    if kind in ARRAYS:
        _write_arrays(result, kind, out)
        return
    lines = result.lines
    if kind == "json":
        lines = [json.dumps(record, ensure_ascii=False) for record in result.records]
    text = "".join(f"{line}\n" for line in lines)
    if out:
        _write_file(out, text)
        return
    try:
        console.write_result(text)
    except UnicodeEncodeError as error:
        raise DataError(
            f"standard output only takes {error.encoding}; use --out=FILE, or set "
            "PYTHONIOENCODING=utf-8"
        ) from None
    except OSError as error:
        raise DataError(
            f"standard output: cannot be written ({error.strerror or error}); use --out=FILE"
        ) from None


def _write_arrays(result: TextResult, kind: str, path: str) -> None:
    """Writes the columns of the records as arrays, latents as `z`. Safetensors cannot hold text."""
    names = [name for name in (result.records[0] if result.records else ()) if name != "z"]
    arrays = {name: np.array([record[name] for record in result.records]) for name in names}
    if result.z_egz is not None:
        arrays["z"] = result.z_egz
    arrays |= result.more
    if kind == "safetensors":
        numbers = {n: np.ascontiguousarray(a) for n, a in arrays.items() if a.dtype.kind in "fiu"}
        _write_file(path, save(numbers))
        return
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)  # pyright: ignore[reportArgumentType]
    _write_file(path, packed.getvalue())


def _write_file(path: str, content: str | bytes) -> None:
    try:
        output.write(path, content)
    except BrokenPipeError:  # the reader has exited, as for standard output
        pass
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None
