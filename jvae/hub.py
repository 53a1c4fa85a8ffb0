"""Downloads files from the Hugging Face hub, through its cache, and uploads them.

One request without retries detects an unreachable hub quickly; cached files still work then.
"""

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jvae.errors import JvaeError

PATIENCE = 5.0  # seconds to wait for the hub before treating it as unreachable
NO_FOLDER = "no folder here"


def file(name: str, path: str, error: type[JvaeError], tried: str = NO_FOLDER) -> Path | None:
    """Fetches one file of a repository, or takes it from the cache. `tried` is as in `absent`.

    Returns None if the repository has no such file, or if the hub is unreachable and the file is
    not in the cache; see `absent`.

    Raises: `error` for an invalid repository name, or one the hub does not know.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        with _explained(name, error, tried):
            offline = not _reachable()
            copy = huggingface_hub.hf_hub_download(
                name, path, local_files_only=offline, endpoint=_endpoint()
            )
            return Path(copy)
    except (errors.EntryNotFoundError, errors.OfflineModeIsEnabled):
        return None


def absent(name: str, lacks: str, error: type[JvaeError], tried: str = NO_FOLDER) -> JvaeError:
    """The error to raise if a repository yielded no file, with the reason.

    Args:
      lacks: the reason if the hub is reachable, such as "no config.json".
      tried: where else the name was looked up.
    """
    if _reachable():
        return error(f"{name}: {lacks}")
    return error(
        f"{name}: {tried}, not in the Hugging Face cache, and the hub is not reachable (or "
        "HF_HUB_OFFLINE is set); give a local folder, or connect once to fill the cache"
    )


def folder(
    name: str, error: type[JvaeError], tried: str = NO_FOLDER, *, manifest: str = ""
) -> Path:
    """Fetches a whole repository, or takes it from the cache. `tried` is as in `absent`.

    Args:
      manifest: a file that the repository must have; without it nothing else is fetched.
    Raises: `error`.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        if manifest and _reachable() and file(name, manifest, error, tried) is None:
            raise error(f"{name}: has no {manifest} on the hub, so it is not a model of jvae")
        with _explained(name, error, tried):
            offline = not _reachable()
            snapshot = huggingface_hub.snapshot_download(
                name, local_files_only=offline, endpoint=_endpoint()
            )
            return Path(snapshot)
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise absent(name, "holds no files", error, tried) from None


def upload(
    folder: Path,
    name: str,
    error: type[JvaeError],
    *,
    manifest: str,
    kept: Sequence[str] = (),
    private: bool = False,
    token: str | None = None,
    message: str = "",
) -> str:
    """Uploads a folder to a repository in one commit and returns the repository's URL.

    The repository is created if needed. Files of an earlier upload that the folder lacks are
    deleted.

    Args:
      manifest: the file of the folder that lists its files, one per line, after their checksum.
      kept: files that stay as they are where the repository has them.
      private: create a private repository.
      token: a token with write access; by default that of `hf auth login` or HF_TOKEN.
    Raises: `error`, also if the repository is public and `private` is asked for, or holds visible
      files that no upload wrote; then nothing is changed.
    """
    import huggingface_hub
    from huggingface_hub import errors

    if not _reachable():
        raise error(f"{name}: the hub is not reachable, or HF_HUB_OFFLINE is set; try again later")
    api = huggingface_hub.HfApi(endpoint=_endpoint(), token=token)
    try:
        api.create_repo(name, private=private, exist_ok=True)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        ours = {path.relative_to(folder).as_posix(): path for path in paths}
        if private and not api.repo_info(name).private:
            raise error(
                f"{name}: exists and is public, so it is not uploaded; make it private on the hub, "
                "or choose another name"
            )
        there = api.list_repo_files(name)
        stale = [path for path in there if path not in ours and _visible(path)]
        if foreign := sorted(set(stale) - _listed(api, name, manifest, there)):
            raise error(
                f"{name}: holds files that no upload of jvae wrote ({_some(foreign)}), so nothing "
                "is uploaded; choose another name, or delete them on the hub"
            )
        new = {path: source for path, source in ours.items() if path not in {*kept} & {*there}}
        operations = [
            *(huggingface_hub.CommitOperationAdd(path, source) for path, source in new.items()),
            *(huggingface_hub.CommitOperationDelete(path) for path in stale),
        ]
        api.create_commit(name, operations, commit_message=message)
    except errors.HfHubHTTPError as failure:
        status = getattr(failure.response, "status_code", None)
        hint = _first_line(failure)
        if status in (401, 403):
            hint = "no write access; run `hf auth login`, or pass a token that has it"
        raise error(f"{name}: cannot be uploaded ({hint})") from None
    except (errors.HFValidationError, OSError, ValueError) as failure:
        raise error(f"{name}: cannot be uploaded ({_first_line(failure)})") from None
    return f"{_endpoint()}/{name}"


def _listed(api: Any, name: str, manifest: str, there: Sequence[str]) -> set[str]:
    """The files that an earlier upload listed; empty if there was none."""
    if manifest not in there:
        return set()
    text = Path(api.hf_hub_download(name, manifest)).read_text(encoding="utf-8")
    return {manifest, *(line.split("  ", 1)[-1] for line in text.splitlines())}


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return f"{', '.join(paths[:3])}{more}"


def _visible(path: str) -> bool:
    return not any(part.startswith(".") for part in path.split("/"))


def _endpoint() -> str:
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")


def _reachable() -> bool:
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and _answers(_endpoint())


@functools.lru_cache(maxsize=8)
def _answers(endpoint: str) -> bool:
    """Whether a hub answers at all, even with an HTTP error."""
    from huggingface_hub import errors, get_hf_file_metadata

    try:
        get_hf_file_metadata(f"{endpoint}/gpt2/resolve/main/config.json", timeout=PATIENCE)
    except errors.HfHubHTTPError:
        return True
    except Exception:  # depends on the HTTP client that the hub's package uses
        return False
    return True


@contextmanager
def _explained(name: str, error: type[JvaeError], tried: str = NO_FOLDER) -> Iterator[None]:
    """Converts errors of the hub's package to `error`; errors for a missing file pass through."""
    from huggingface_hub import errors

    try:
        yield
    except (errors.EntryNotFoundError, errors.OfflineModeIsEnabled):
        raise
    except errors.RepositoryNotFoundError:
        raise error(
            f"{name}: {tried} and no repository on the Hugging Face hub by that name (or a private "
            "one, for which `hf auth login` is needed)"
        ) from None
    except (errors.HFValidationError, errors.HfHubHTTPError, OSError, ValueError) as failure:
        reason = _first_line(failure)
        raise error(f"{name}: {tried}, and it cannot be fetched from the hub ({reason})") from None


def _first_line(failure: Exception) -> str:
    return (str(failure).strip() or type(failure).__name__).splitlines()[0]
