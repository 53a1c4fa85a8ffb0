"""Checkpoints of a run: the latest few and the best, written in the background and atomically.

In the run's directory, `ckpt/last/<step>` and `ckpt/best/<step>` each hold a state (any pytree of
arrays, see `jvae.runs.state_dict`) and `meta`, a JSON object. Arrays that never change (frozen
weights) are stored once in `ckpt/frozen/0`; checkpoints refer to them by digest. A step's directory
gets its final name by a single rename, after all of its content is on disk. No pickle.
"""

import functools
import hashlib
import json
import logging
import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array

import jvae
from jvae.errors import CheckpointError
from jvae.runs import state_dict
from jvae.runs.migrations import Paths
from jvae.tree import named_leaves

LAYOUT = "stacked-1"  # how parameters are arranged: layers stacked on axis 0
METRIC = "validation -ELBO, final objective"  # criterion of the best checkpoint
FROZEN = "frozen"  # folder name, and key of its digest in the meta of checkpoints

log = logging.getLogger(__name__)

Meta = dict[str, Any]
T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one working directory.

    If the newest checkpoint cannot be read, the one before it is used, with a warning, and the
    damaged one is moved to `ckpt/torn` when the run saves again.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        keep_last: int = 2,
        read_only: bool = False,
        frozen: Collection[str] = (),
    ):
        """Opens or creates `workdir`/ckpt; leftovers of interrupted saves are deleted in the
        background.

        Args:
          read_only: changes nothing, so that a run can be read while it is training.
          frozen: paths of the arrays of a state that never change. They are stored once, with the
            first checkpoint, and left out of every checkpoint.
        Raises: CheckpointError if the directory cannot be used.
        """
        self.root = Path(workdir).absolute() / "ckpt"
        self._read_only = read_only
        self._frozen, self._digest = frozenset(frozen), ""
        self._torn: set[tuple[str, int]] = set()
        self._best_metric: float | None = None  # read from disk on first use
        with _explained(f"cannot open checkpoints in {self.root}"):
            self._managers = {
                "last": self._open("last", keep_last),
                "best": self._open("best", 1),
            }

    def _open(self, kind: str, keep: int) -> ocp.CheckpointManager:
        absl = logging.getLogger("absl")
        level = absl.level
        if self._read_only:  # Orbax's read-only options warn twice per manager
            absl.setLevel(logging.ERROR)
        try:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=None if self._read_only else keep,
                create=not self._read_only,
                cleanup_tmp_directories=not self._read_only,
                read_only=self._read_only,
            )
            handlers = {"state": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
            return ocp.CheckpointManager(self.root / kind, options=options, item_handlers=handlers)
        finally:
            absl.setLevel(level)

    def _frozen_manager(self) -> ocp.CheckpointManager:
        if FROZEN not in self._managers:  # most runs have no frozen weights
            self._managers[FROZEN] = self._open(FROZEN, 1)
        return self._managers[FROZEN]

    def save(self, step: int, state: Any, meta: Mapping[str, object]) -> None:
        """Copies `state` to the host and returns; writing continues in the background.

        The arrays of `state` may be donated as soon as this returns. A step that is already saved
        is left unchanged.

        Args:
          meta: JSON-serialisable values, such as the config and the data position. `step`,
            `version` of this package, `layout` of the parameters, `keys` (kinds of random keys) and
            `checksums` are added.
        Raises: CheckpointError, also if an earlier save has failed in the meantime.
        """
        self._save("last", step, state, meta)

    def save_best(self, step: int, state: Any, meta: Mapping[str, object], metric: float) -> bool:
        """Saves if `metric` is lower than that of the best checkpoint so far, which it replaces.

        Returns: whether it was saved. A non-finite metric is never saved.
        Raises: CheckpointError.
        """
        if not math.isfinite(metric) or metric >= self.best_metric():
            return False
        named = {"metric": float(metric), "metric_name": METRIC}
        self._save("best", step, state, {**meta, **named})
        self._best_metric = float(metric)
        return True

    def _save(self, kind: str, step: int, state: Any, meta: Mapping[str, object]) -> None:
        manager = self._managers[kind]
        with _explained(f"cannot save step {step} in {self.root / kind}"):
            self._move_torn(kind)
            if step in manager.all_steps():
                return
            arrays = named_leaves(state_dict.arrays_of(state))
            frozen = {path: leaf for path, leaf in arrays.items() if path in self._frozen}
            if frozen:
                meta = {**meta, FROZEN: self._keep_frozen(frozen, meta.get("config"))}
            arrays = {path: leaf for path, leaf in arrays.items() if path not in frozen}
            _write(manager, step, arrays, {**meta, "keys": state_dict.key_kinds(state)})

    def _keep_frozen(self, arrays: Mapping[str, Array], config: object) -> str:
        """Stores the arrays that never change, unless already stored; returns their digest.

        A checkpoint that refers to them must not exist without them, so this waits for the disk.

        Raises: CheckpointError if existing checkpoints refer to different frozen weights.
        """
        if self._digest:
            return self._digest
        manager = self._frozen_manager()
        meta = {"config": config, "digest": _digest(arrays)}
        if manager.all_steps():
            same = self._read_meta(FROZEN, 0)["digest"] == meta["digest"]
            if not same and any(self._managers[kind].all_steps() for kind in ("last", "best")):
                raise CheckpointError(
                    f"{self.root / FROZEN}: holds other frozen weights than those of this run; "
                    "bring the folder back from a copy, or start over in another --workdir"
                )
            if not same:  # left by a start that never saved a checkpoint
                manager.delete(0)
        if not manager.all_steps():
            _write(manager, 0, arrays, meta)
            manager.wait_until_finished()
        self._digest = str(meta["digest"])
        return self._digest

    def latest(self) -> int | None:
        """Newest step of `last`; None if there is none."""
        return max(self._steps("last"), default=None)

    def best(self) -> int | None:
        """Step of the best checkpoint; None if there is none."""
        return max(self._steps("best"), default=None)

    def best_metric(self) -> float:
        """Validation metric of the best checkpoint; infinite if none can be read, or if it is from
        an older jvae that compared losses of objectives that were still changing.
        """
        if self._best_metric is None:
            self._best_metric = math.inf
            for step in self._steps("best"):
                try:
                    meta = self._read_meta("best", step)
                    if meta.get("metric_name") == METRIC:
                        self._best_metric = float(meta["metric"])
                    break
                except Exception as error:
                    self._pass_over("best", step, error)
        return self._best_metric

    def meta(self, step: int | None = None, *, best: bool = False) -> Meta:
        """The meta of a checkpoint, without its state; see `restore` for the arguments."""
        return self._newest(step, best, self._checked_meta)

    def restore(
        self, abstract: Any, step: int | None = None, *, best: bool = False, partial: bool = False
    ) -> tuple[Any, Meta]:
        """State and meta of a checkpoint: by default the newest intact one.

        Args:
          abstract: a tree like the saved one, of arrays or ShapeDtypeStructs, or a function that
            builds one from the meta. Its shardings, if any, apply to the result; they may differ
            from those at the time of saving.
          step: restore this step instead of the newest one.
          best: restore the best checkpoint instead of one of the last.
          partial: `abstract` is a part of the saved tree, for example the parameters without the
            optimizer; only that part is read.
        Raises: CheckpointError if there is none, if none is intact, or if names, shapes, dtypes or
          the parameter layout differ from the stored ones.
        """

        def read(kind: str, step: int) -> tuple[Any, Meta]:
            meta = self._checked_meta(kind, step)
            target = abstract(meta) if callable(abstract) else abstract
            return self._read_state(kind, step, target, meta, partial), meta

        return self._newest(step, best, read)

    def arrays(self, *, best: bool = False) -> tuple[dict[str, np.ndarray], Meta]:
        """All arrays of the newest intact checkpoint by path, on the host, and its meta.

        Raises: CheckpointError as in `restore`.
        """

        def read(kind: str, step: int) -> tuple[dict[str, np.ndarray], Meta]:
            meta = self._checked_meta(kind, step)
            with self._frozen_of(meta) as frozen:
                arrays = self._arrays(FROZEN, 0, frozen) if frozen else {}
            return arrays | self._arrays(kind, step, meta), meta

        return self._newest(None, best, read)

    def _arrays(self, kind: str, step: int, meta: Meta) -> dict[str, np.ndarray]:
        manager = self._managers[kind]
        tree = manager.item_metadata(step)["state"].tree
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        items = ocp.args.Composite(state=ocp.args.PyTreeRestore(restore_args=plain))
        leaves = named_leaves(manager.restore(step, args=items)["state"])
        paths = Paths.of(meta.get("config"))
        return {paths.new(path): leaf for path, leaf in leaves.items()}

    def wait(self) -> None:
        """Blocks until all saves are on disk.

        Raises: CheckpointError if one failed.
        """
        for kind, manager in self._managers.items():
            with _explained(f"a save in {self.root / kind} failed, those before it are kept"):
                manager.wait_until_finished()

    def close(self) -> None:
        """Waits for pending saves and stops the threads."""
        try:
            self.wait()
        finally:
            for manager in self._managers.values():
                manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _steps(self, kind: str) -> list[int]:
        """Steps that are not known to be damaged, newest first."""
        steps = sorted(self._managers[kind].all_steps(), reverse=True)
        return [step for step in steps if (kind, step) not in self._torn]

    def _newest(self, step: int | None, best: bool, read: Callable[[str, int], T]) -> T:
        self.wait()
        _silence_abandoned_reads()
        kind = "best" if best else "last"
        steps = self._steps(kind) if step is None else [step]
        for candidate in steps:
            if candidate not in self._managers[kind].all_steps():
                break
            try:
                return read(kind, candidate)
            except CheckpointError:
                raise
            except Exception as error:
                self._pass_over(kind, candidate, error)
        present = ", ".join(str(number) for number in self._managers[kind].all_steps()) or "none"
        problem = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise CheckpointError(
            f"{self.root / kind}: {problem} that can be read (steps: {present}). Bring the folder "
            "back from a copy, or start over in another --workdir"
        )

    def _pass_over(self, kind: str, step: int, error: Exception) -> None:
        self._torn.add((kind, step))
        log.warning("%s: incomplete, skipped: %s", self.root / kind / str(step), _short(error))

    def _move_torn(self, kind: str) -> None:
        """Moves damaged steps away, so that the resumed run can save these steps again."""
        torn = [step for of, step in self._torn if of == kind]
        for step in torn:
            if jax.process_index() == 0:
                target = self.root / "torn" / f"{kind}-{step}"
                while target.exists():
                    target = target.with_name(target.name + "x")
                target.parent.mkdir(exist_ok=True)
                (self.root / kind / str(step)).rename(target)
            self._torn.discard((kind, step))
        if torn:
            self._managers[kind].reload()

    def _read_meta(self, kind: str, step: int) -> Meta:
        manager = self._managers[kind]
        meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        if not isinstance(meta, dict):
            raise ValueError("meta is not a JSON object")
        # Checkpoints of an older jvae have no checksum of their meta.
        digest = meta.pop("meta_sha256", None)
        if digest is not None and digest != _sha256(meta):
            raise ValueError("meta is damaged: its SHA-256 is not that of the saved one")
        return meta

    def _checked_meta(self, kind: str, step: int) -> Meta:
        meta = self._read_meta(kind, step)
        if meta["layout"] != LAYOUT:
            raise CheckpointError(
                f"{self.root / kind / str(step)}: parameter layout {meta['layout']!r} of jvae "
                f"{meta['version']}; this is jvae {jvae.__version__} with layout {LAYOUT!r}"
            )
        return meta

    @contextmanager
    def _frozen_of(self, meta: Meta) -> Iterator[Meta | None]:
        """The meta of the frozen weights that a checkpoint refers to; None if it refers to none.

        Raises: CheckpointError if they are missing or different, or cannot be read in the body.
        """
        if FROZEN not in meta:
            yield None
            return
        where = self.root / FROZEN
        remedy = (
            "every checkpoint of this run needs them. Bring that folder back from a copy, or start "
            "over in another --workdir"
        )
        try:
            if not (where / "0").is_dir():
                raise CheckpointError(f"{where}: the frozen weights are missing; {remedy}")
            self._frozen_manager()
            frozen = self._read_meta(FROZEN, 0)
            if frozen["digest"] != meta[FROZEN]:
                raise CheckpointError(f"{where}: holds the weights of another run; {remedy}")
            yield frozen
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"{where}: the frozen weights cannot be read ({_short(error)}); {remedy}"
            ) from error

    def _read_state(self, kind: str, step: int, abstract: Any, meta: Meta, partial: bool) -> Any:
        expected = named_leaves(state_dict.abstract_arrays_of(abstract))
        have, once = self._stored(kind, step, meta), {}
        with self._frozen_of(meta) as frozen:
            if frozen:
                once = self._stored(FROZEN, 0, frozen)
        # Frozen weights keep their stored number type, which may be narrower.
        for path in expected.keys() & once.keys():
            like = expected[path]
            expected[path] = jax.ShapeDtypeStruct(
                like.shape, once[path].dtype, sharding=like.sharding
            )
        state_dict.compare(self.root / kind / str(step), once | have, expected, partial)
        unfrozen = {path: leaf for path, leaf in expected.items() if path not in once}
        leaves = self._read(kind, step, unfrozen, meta, partial) if unfrozen else {}
        with self._frozen_of(meta) as frozen:
            if frozen and (shared := {path: expected[path] for path in expected if path in once}):
                leaves |= self._read(FROZEN, 0, shared, frozen, partial=True)
        return state_dict.state_of(leaves, abstract, meta["keys"])

    def _stored(self, kind: str, step: int, meta: Meta) -> dict[str, Any]:
        """Shapes and number types of a checkpoint's arrays, by current path."""
        tree = self._managers[kind].item_metadata(step)["state"].tree
        paths = Paths.of(meta.get("config"))
        return {paths.new(path): leaf for path, leaf in named_leaves(tree).items()}

    def _read(
        self,
        kind: str,
        step: int,
        leaves: Mapping[str, jax.ShapeDtypeStruct],
        meta: Meta,
        partial: bool,
    ) -> dict[str, Array]:
        """Arrays by path. Raises: ValueError if a checksum differs."""
        paths = Paths.of(meta.get("config"))
        tree = state_dict.nested(leaves, paths.old)
        arguments = jax.tree.map(
            lambda leaf: ocp.ArrayRestoreArgs(
                sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype
            ),
            tree,
        )
        item = ocp.args.PyTreeRestore(item=tree, restore_args=arguments, partial_restore=partial)
        items = ocp.args.Composite(state=item)
        arrays = self._managers[kind].restore(step, args=items)["state"]
        for name, checksum in state_dict.checksums(arrays).items():
            if checksum != meta["checksums"][name]:
                raise ValueError(f"{name} is damaged: its checksum is not that of the saved array")
        return {paths.new(path): leaf for path, leaf in named_leaves(arrays).items()}


def _write(
    manager: ocp.CheckpointManager,
    step: int,
    arrays: Mapping[str, Array],
    meta: Mapping[str, object],
) -> None:
    full_meta = {
        **meta,
        "step": step,
        "version": jvae.__version__,
        "layout": LAYOUT,
        "checksums": state_dict.checksums(arrays),
    }
    full_meta["meta_sha256"] = _sha256(full_meta)
    items = ocp.args.Composite(
        state=ocp.args.PyTreeSave(state_dict.nested(arrays)), meta=ocp.args.JsonSave(full_meta)
    )
    manager.save(step, args=items, force=True)


def _digest(arrays: Mapping[str, Array]) -> str:
    """SHA-256 of paths, number types, shapes and checksums."""
    sums = state_dict.checksums(arrays)
    return _sha256({p: [str(a.dtype), list(a.shape), sums[p]] for p, a in arrays.items()})


def _short(error: Exception) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return reason.partition(" [tensorstore_spec")[0]  # drops a screenful of detail


def _sha256(meta: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


@functools.cache
def _silence_abandoned_reads() -> None:
    """Suppresses, once per process, a traceback for each read that Orbax has abandoned.

    Orbax stops at the first array that cannot be read. Reads that TensorStore had already started
    then report to a closed event loop, or to nobody; the exception that is raised is sufficient.
    """
    before = sys.unraisablehook

    def hook(report: "sys.UnraisableHookArgs") -> None:
        error = report.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            before(report)

    def awaited(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not ("never retrieved" in text and "tensorstore_spec" in text)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(awaited)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Converts any exception of the file system or Orbax to a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{what}: {type(error).__name__}: {error}") from error
