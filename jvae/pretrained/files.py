"""Weight files: tensors by name with shape and dtype at once, data on demand. Nothing is unpickled.

A Hugging Face checkpoint is a folder, or a hub name, with `config.json` and `model.safetensors` or
`flax_model.msgpack`, whole or cut into shards with an index. The hub is asked only when a name is
given that is no folder here.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import msgpack
import numpy as np

from jvae.errors import WeightsError

SAFETENSORS = "model.safetensors"
MSGPACK = "flax_model.msgpack"
CONFIG = "config.json"
INDEX = ".index.json"
CANDIDATES = (SAFETENSORS, SAFETENSORS + INDEX, MSGPACK, MSGPACK + INDEX)
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_ARRAY, _SCALAR = 1, 3  # extension types of Flax's msgpack files
_CHUNKED = "__msgpack_chunked_array__"


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file. Its data is read when it is made an array, and not kept."""

    shape: tuple[int, ...]
    dtype: Any
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy
        array = self.read()
        return array if dtype is None else array.astype(dtype)

    @property
    def T(self) -> "Tensor":  # noqa: N802  as in NumPy
        """The transposed tensor, still unread."""
        return Tensor(self.shape[::-1], self.dtype, lambda: self.read().T)


Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face checkpoint, its data unread.

    `flax` tells the names and layouts: "h/0/attn/c_attn/kernel", else "h.0.attn.c_attn.weight".
    """

    name: str
    config: dict[str, Any]
    tensors: Tensors
    flax: bool
    files: tuple[Path, ...]


def of_arrays(arrays: Mapping[str, np.ndarray]) -> Tensors:
    """Arrays that are in memory already, as tensors."""
    return {n: Tensor(a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()}


def is_local(name: str) -> bool:
    """Whether a name means a folder here. Raises WeightsError for a path that does not exist."""
    try:
        if Path(name).expanduser().exists():
            return True
    except (RuntimeError, OSError, ValueError) as error:  # no such user, a name too long, NUL
        raise WeightsError(f"{name[:80]}: cannot be a folder ({_reason(error)})") from None
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise WeightsError(f"{name}: no such folder; expected one with {CONFIG} and {SAFETENSORS}")
    return False


def open_checkpoint(name_or_folder: str | os.PathLike[str]) -> Checkpoint:
    """A checkpoint by local folder or, where no such folder exists, by Hugging Face hub name.

    Raises: WeightsError if it is not there, not reachable or damaged.
    """
    name = os.fspath(name_or_folder)
    if is_local(name):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise WeightsError(f"{name}: is a file; name the folder that holds it")

        def find(file: str) -> Path | None:
            return folder / file if (folder / file).is_file() else None
    else:

        def find(file: str) -> Path | None:
            return _from_hub(name, file)

    config_file = find(CONFIG)
    if config_file is None:
        raise WeightsError(f"{name}: has no {CONFIG}")
    config = read_json(config_file)
    for file in CANDIDATES:
        path = find(file)
        if path is None:
            continue
        if not file.endswith(INDEX):
            return Checkpoint(name, config, read_file(path), file == MSGPACK, (path,))
        tensors, shards = _sharded(path, find)
        return Checkpoint(name, config, tensors, file.startswith(MSGPACK), shards)
    only_torch = find("pytorch_model.bin") or find("pytorch_model.bin" + INDEX)
    advice = (
        "; its pytorch_model.bin is a pickle and is not read: save it again with "
        "save_pretrained(..., safe_serialization=True)"
        if only_torch
        else ""
    )
    raise WeightsError(f"{name}: has none of {', '.join(CANDIDATES)}{advice}")


def _sharded(index: Path, find: Callable[[str], Path | None]) -> tuple[Tensors, tuple[Path, ...]]:
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise WeightsError(f"{index}: has no weight_map from tensors to files")
    tensors: Tensors = {}
    shards = []
    for file in sorted({str(file) for file in where.values()}):
        path = find(file) if re.fullmatch(r"[\w.-]+", file) else None
        if path is None:
            raise WeightsError(f"{index}: shard {file!r} is not there; copy or download it again")
        shards.append(path)
        part = read_file(path)
        told = {name for name, shard in where.items() if shard == file}
        if odd := sorted(told ^ set(part)):
            raise WeightsError(
                f"{path}: disagrees with {index.name} on {len(odd)} tensors, among them {odd[0]}"
            )
        tensors |= part
    return tensors, tuple(shards)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises WeightsError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: cannot be read ({_reason(error)})") from None
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: is not a JSON object")
    return value


def read_file(path: Path) -> Tensors:
    """Tensors of a .safetensors, .npz or .msgpack file.

    Raises: WeightsError if the file is damaged or of another kind.
    """
    readers = {".safetensors": _safetensors, ".npz": _npz, ".msgpack": _msgpack}
    reader = readers.get(path.suffix)
    if reader is None:
        raise WeightsError(f"{path}: expected a file of type {', '.join(readers)}")
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    with _explained(path):
        return reader(path)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Whatever a parser finds wrong with a damaged file becomes a WeightsError."""
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:  # parsers of foreign bytes raise whatever they like
        raise WeightsError(
            f"{path}: is damaged or no file of its type ({_reason(error)}); copy it again"
        ) from error


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _safetensors(path: Path) -> Tensors:
    from safetensors import safe_open

    file = safe_open(path, framework="np")
    tensors = {}
    for name in file.keys():  # noqa: SIM118  not a mapping
        part = file.get_slice(name)
        dtype = jnp.dtype(_DTYPES[kind]) if (kind := part.get_dtype()) in _DTYPES else kind
        tensors[name] = Tensor(tuple(part.get_shape()), dtype, _reader(path, file, name))
    return tensors


def _reader(path: Path, file: Any, name: str) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        with _explained(path):
            return file.get_tensor(name)

    return read


def metadata(path: Path) -> dict[str, str]:
    """The free text that a .safetensors file carries beside its tensors. Raises: WeightsError."""
    from safetensors import safe_open

    with _explained(path), safe_open(path, framework="np") as file:
        return dict(file.metadata() or {})


def _npz(path: Path) -> Tensors:
    """Shapes from the header of every array: they are compared before anything is decompressed."""
    file = np.load(path, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile) or file.zip is None:
        raise ValueError("it is one array, not an archive of arrays")
    tensors = {}
    for name in file.files:
        member = name if name in file.zip.namelist() else f"{name}.npy"
        with file.zip.open(member) as part:
            version = np.lib.format.read_magic(part)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, _, dtype = read(part)
        if dtype.hasobject:
            raise ValueError(f"{name} holds objects, which only allow_pickle would read")
        tensors[name] = Tensor(shape, dtype, _npz_reader(path, file, name))
    return tensors


def _npz_reader(path: Path, file: Any, name: str) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        with _explained(path):
            return file[name]

    return read


def _msgpack(path: Path) -> Tensors:
    """Flax's serialisation of nested dictionaries; names are joined by "/"."""
    tree = msgpack.unpackb(
        path.read_bytes(), raw=False, strict_map_key=False, ext_hook=_array, use_list=True
    )
    tensors: Tensors = {}

    def walk(node: Any, name: str) -> None:
        if isinstance(node, dict) and node.get(_CHUNKED):
            node = _joined(node)
        if isinstance(node, dict):
            for key, child in node.items():
                walk(child, f"{name}/{key}" if name else str(key))
        elif not isinstance(node, np.ndarray):
            raise WeightsError(f"{path}: {name or 'the file'} is {type(node).__name__}, no array")
        elif name in tensors:
            raise WeightsError(f"{path}: holds {name} twice")
        else:
            tensors[name] = Tensor(node.shape, node.dtype, lambda: node)

    walk(tree, "")
    return tensors


def _array(code: int, data: bytes) -> np.ndarray:
    if code not in (_ARRAY, _SCALAR):
        raise ValueError(f"extension type {code} is no array")
    shape, dtype, buffer = msgpack.unpackb(data, raw=True)
    return np.frombuffer(buffer, jnp.dtype(dtype.decode())).reshape(shape)


def _joined(node: Mapping[str, Any]) -> np.ndarray:
    """An array that Flax cut because it is larger than a msgpack string may be."""
    shape = [int(node["shape"][str(i)]) for i in range(len(node["shape"]))]
    parts = [node["chunks"][str(i)] for i in range(len(node["chunks"]))]
    array = np.concatenate([np.asarray(part).reshape(-1) for part in parts])
    if array.size != math.prod(shape):
        raise ValueError(f"chunks of {array.size} numbers for shape {shape}")
    return array.reshape(shape)


def write_safetensors(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes tensors under their names, in an order that does not depend on the caller's."""
    from safetensors.numpy import save_file

    # Not `np.ascontiguousarray`, which gives scalars an axis.
    ordered = {name: np.asarray(arrays[name], order="C") for name in sorted(arrays)}
    save_file(ordered, path, metadata=dict(metadata))


def fetch_folder(name: str) -> Path:
    """A whole hub repository, from the cache where it is there. Raises WeightsError."""
    import huggingface_hub as hub

    with _hub_errors(name):
        return Path(hub.snapshot_download(name))


def _from_hub(name: str, file: str) -> Path | None:
    """A file of a hub repository, from the cache where it is there; None if it has no such file."""
    import huggingface_hub as hub
    from huggingface_hub import errors

    try:
        with _hub_errors(name):
            return Path(hub.hf_hub_download(name, file))
    except errors.EntryNotFoundError:
        return None
    except _NotCached:
        if file != CONFIG:  # a cache that has this one need not hold what the repository lacks
            return None
        raise


class _NotCached(WeightsError):
    """Not in the cache, and the hub was not reached."""


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise _NotCached(
            f"{name}: no folder here, not in the Hugging Face cache, and the hub is not reachable "
            "(or HF_HUB_OFFLINE is set); give a local folder, or connect once to fill the cache"
        ) from None
    except errors.EntryNotFoundError:
        raise
    except errors.RepositoryNotFoundError:
        raise WeightsError(
            f"{name}: no folder here and no repository on the Hugging Face hub by that name (or a "
            "private one, for which `hf auth login` is needed)"
        ) from None
    except (errors.HFValidationError, errors.HfHubHTTPError, OSError, ValueError) as error:
        raise WeightsError(f"{name}: cannot be fetched from the hub ({_reason(error)})") from None
