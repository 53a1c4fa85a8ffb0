"""Weight files: tensors by name, with shape and dtype known at once and data read on demand.

Pickles are never loaded. A Hugging Face checkpoint is a local folder or a hub name, with
`config.json` and `model.safetensors` or `flax_model.msgpack`, either whole or in shards with an
index. The hub is contacted only for a name that is not a local folder.
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

from jvae import hub
from jvae.errors import WeightsError

SAFETENSORS = "model.safetensors"
MSGPACK = "flax_model.msgpack"
SUMS = "SHA256SUMS"  # the files of an export of jvae, with their hashes
CONFIG = "config.json"
INDEX = ".index.json"
CANDIDATES = (SAFETENSORS, SAFETENSORS + INDEX, MSGPACK, MSGPACK + INDEX)
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_ARRAY, _SCALAR = 1, 3  # extension types of Flax's msgpack files
_CHUNKED = "__msgpack_chunked_array__"


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file. Its data is read on conversion to an array, and not kept."""

    shape: tuple[int, ...]
    dtype: Any
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy
        array = self.read()
        return array if dtype is None else array.astype(dtype)

    @property
    def T(self) -> "Tensor":  # noqa: N802  as in NumPy
        """The transposed tensor; data is not read."""
        return Tensor(self.shape[::-1], self.dtype, lambda: self.read().T)


Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face checkpoint, whose data has not been read.

    `flax` selects names and layouts: "h/0/attn/c_attn/kernel" if True, else
    "h.0.attn.c_attn.weight".
    """

    name: str
    config: dict[str, Any]
    tensors: Tensors
    flax: bool
    files: tuple[Path, ...]


def of_arrays(arrays: Mapping[str, np.ndarray]) -> Tensors:
    """Wraps in-memory arrays as tensors."""
    return {n: Tensor(a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()}


def is_local(name: str) -> bool:
    """Whether a name is a local path. Raises WeightsError for a path that does not exist."""
    try:
        if Path(name).expanduser().exists():
            return True
    except (RuntimeError, OSError, ValueError) as error:  # no such user, a name too long, NUL
        raise WeightsError(f"{name[:80]}: cannot be a folder ({_reason(error)})") from None
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise WeightsError(f"{name}: no such folder; expected one with {CONFIG} and {SAFETENSORS}")
    return False


def finder(name_or_folder: str | os.PathLike[str]) -> Callable[[str], Path | None]:
    """Returns a function that finds a file in a folder or, if there is none, a hub repository.

    Raises: WeightsError for a name that cannot be either.
    """
    name = os.fspath(name_or_folder)
    if not is_local(name):
        return lambda file: hub.file(name, file, WeightsError)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise WeightsError(f"{name}: is a file; name the folder that holds it")
    return lambda file: folder / file if (folder / file).is_file() else None


def config_of(name_or_folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the config.json of a checkpoint, without its weights.

    Raises: WeightsError if it is missing, unreachable or damaged.
    """
    name, lacks = os.fspath(name_or_folder), f"has no {CONFIG}"
    path = finder(name)(CONFIG)
    if path is None:
        raise (
            WeightsError(f"{name}: {lacks}")
            if is_local(name)
            else hub.absent(name, lacks, WeightsError)
        )
    return read_json(path)


def open_checkpoint(name_or_folder: str | os.PathLike[str]) -> Checkpoint:
    """Opens a checkpoint from a local folder or, if there is no such folder, by hub name.

    Raises: WeightsError if it is missing, unreachable or damaged.
    """
    name, find = os.fspath(name_or_folder), finder(name_or_folder)
    config = config_of(name_or_folder)
    for file in CANDIDATES:
        path = find(file)
        if path is None:
            continue
        if not file.endswith(INDEX):
            return Checkpoint(name, config, read_file(path), file == MSGPACK, (path,))
        tensors, shards = _sharded(path, find)
        return Checkpoint(name, config, tensors, file.startswith(MSGPACK), shards)
    lacks = f"has none of {', '.join(CANDIDATES)}{_advice(name)}"
    raise (
        WeightsError(f"{name}: {lacks}")
        if is_local(name)
        else hub.absent(name, lacks, WeightsError)
    )


def _advice(name: str) -> str:
    """Advice for weights that are pickles; empty for a folder without any."""
    pickles = "its pytorch_model.bin, if it has one,"
    if is_local(name):
        kinds = (".bin", ".pt", ".pth", ".ckpt")
        files = sorted(p.name for p in Path(name).expanduser().iterdir() if p.suffix in kinds)
        if not files:
            return ""
        pickles = f"its {', '.join(files[:3])}"
    return (
        f"; {pickles} is a pickle and is not read. Where PyTorch is installed: python -c 'from "
        f'transformers import AutoModel as M; M.from_pretrained("{name}").save_pretrained("NEW")\''
        " writes safetensors into the folder NEW"
    )


def _sharded(index: Path, find: Callable[[str], Path | None]) -> tuple[Tensors, tuple[Path, ...]]:
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise WeightsError(f"{index}: has no weight_map from tensors to files")
    names = sorted({str(file) for file in where.values()})
    paths = {file: find(file) if re.fullmatch(r"[\w.-]+", file) else None for file in names}
    if missing := [file for file, path in paths.items() if path is None]:
        listing = ", ".join(missing[:5]) + (" ..." if missing[5:] else "")
        raise WeightsError(
            f"{index}: {len(missing)} of {len(names)} shards are missing ({listing}); copy or "
            "download them again"
        )
    shards = {file: path for file, path in paths.items() if path is not None}
    tensors: Tensors = {}
    for file, path in shards.items():
        part = read_file(path)
        listed = {name for name, shard in where.items() if shard == file}
        if odd := sorted(listed ^ set(part)):
            raise WeightsError(
                f"{path}: disagrees with {index.name} on {len(odd)} tensors, among them {odd[0]}"
            )
        tensors |= part
    return tensors, tuple(shards.values())


def read_json(path: Path, kind: type = dict) -> Any:
    """Reads a JSON object, or a list if `kind` is list. Raises WeightsError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: cannot be read ({_reason(error)})") from None
    if not isinstance(value, kind):
        what = "a JSON object" if kind is dict else "a JSON list"
        raise WeightsError(f"{path}: is not {what}")
    return value


def read_file(path: Path) -> Tensors:
    """Opens the tensors of a .safetensors, .npz or .msgpack file.

    Raises: WeightsError if the file is damaged or of another type.
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
    """Converts any error of a parser on a damaged file to a WeightsError."""
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:  # parsers of damaged files may raise any exception
        raise WeightsError(
            f"{path}: is damaged or not a file of its type ({_reason(error)}); copy it again"
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
    """The text metadata of a .safetensors file. Raises: WeightsError."""
    from safetensors import safe_open

    with _explained(path), safe_open(path, framework="np") as file:
        return dict(file.metadata() or {})


def _npz(path: Path) -> Tensors:
    """Reads shapes from array headers, so that they are checked before any decompression."""
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
    """Reads Flax's serialisation of nested dictionaries; names are joined by "/"."""
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
            raise WeightsError(
                f"{path}: {name or 'the file'} is {type(node).__name__}, not an array"
            )
        elif name in tensors:
            raise WeightsError(f"{path}: holds {name} twice")
        else:
            tensors[name] = Tensor(node.shape, node.dtype, lambda: node)

    walk(tree, "")
    return tensors


def _array(code: int, data: bytes) -> np.ndarray:
    if code not in (_ARRAY, _SCALAR):
        raise ValueError(f"extension type {code} is not an array")
    shape, dtype, buffer = msgpack.unpackb(data, raw=True)
    return np.frombuffer(buffer, jnp.dtype(dtype.decode())).reshape(shape)


def _joined(node: Mapping[str, Any]) -> np.ndarray:
    """Joins an array that Flax split because it exceeds the size limit of msgpack strings."""
    shape = [int(node["shape"][str(i)]) for i in range(len(node["shape"]))]
    parts = [node["chunks"][str(i)] for i in range(len(node["chunks"]))]
    array = np.concatenate([np.asarray(part).reshape(-1) for part in parts])
    if array.size != math.prod(shape):
        raise ValueError(f"chunks of {array.size} numbers for shape {shape}")
    return array.reshape(shape)


def write_safetensors(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes tensors by name, in an order that does not depend on the mapping's order."""
    from safetensors.numpy import save_file

    # Not `np.ascontiguousarray`, which gives scalars an axis.
    ordered = {name: np.asarray(arrays[name], order="C") for name in sorted(arrays)}
    path.touch()
    mode = path.stat().st_mode  # default mode; the package makes files readable by the owner only
    save_file(ordered, path, metadata=dict(metadata))
    path.chmod(mode)
