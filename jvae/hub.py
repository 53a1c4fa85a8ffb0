"""Files of the Hugging Face hub: from its cache, fetched, or uploaded.

A hub out of reach is known at once, by one question without retries; what the cache holds is used
all the same.
"""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jvae.errors import JvaeError

PATIENCE = 5.0  # seconds until a hub that does not answer counts as out of reach
NO_FOLDER = "no folder here"


def file(name: str, path: str, error: type[JvaeError]) -> Path | None:
    """A file of a repository; None where it has none, or the hub is out of reach and the file is
    not in the cache: see `absent`.

    Raises: `error` for a name that is none, or that the hub does not know.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        with _explained(name, error):
            offline = not _reachable()
            found = huggingface_hub.hf_hub_download(
                name, path, local_files_only=offline, endpoint=_endpoint()
            )
            return Path(found)
    except (errors.EntryNotFoundError, errors.OfflineModeIsEnabled):
        return None


def absent(name: str, lacks: str, error: type[JvaeError], tried: str = NO_FOLDER) -> JvaeError:
    """The error for a repository of which no file came: why.

    Args:
      lacks: what is wrong where the hub answers, such as "no config.json".
      tried: where else the name was looked for.
    """
    if _reachable():
        return error(f"{name}: {lacks}")
    return error(
        f"{name}: {tried}, not in the Hugging Face cache, and the hub is not reachable (or "
        "HF_HUB_OFFLINE is set); give a local folder, or connect once to fill the cache"
    )


def folder(name: str, error: type[JvaeError], tried: str = NO_FOLDER) -> Path:
    """A whole repository, from the cache where it is there. `tried` is as for `absent`.

    Raises: `error`.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        with _explained(name, error, tried):
            offline = not _reachable()
            found = huggingface_hub.snapshot_download(
                name, local_files_only=offline, endpoint=_endpoint()
            )
            return Path(found)
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise absent(name, "holds no files", error, tried) from None


def upload(
    folder: Path,
    name: str,
    error: type[JvaeError],
    *,
    private: bool = False,
    token: str | None = None,
    message: str = "",
) -> str:
    """Makes the files of a folder the files of a repository, in one commit, and creates it where
    there is none. Returns its address.

    Args:
      private: of a new repository. token: one that may write; by default that of `hf auth login`
        or HF_TOKEN.
    Raises: `error`.
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
        stale = [one for one in api.list_repo_files(name) if one not in ours and _visible(one)]
        operations = [
            *(huggingface_hub.CommitOperationAdd(one, path) for one, path in ours.items()),
            *(huggingface_hub.CommitOperationDelete(one) for one in stale),
        ]
        api.create_commit(name, operations, commit_message=message)
    except errors.HfHubHTTPError as failure:
        status = getattr(failure.response, "status_code", None)
        hint = _first_line(failure)
        if status in (401, 403):
            hint = "it may not be written; run `hf auth login`, or pass a token that may"
        raise error(f"{name}: cannot be uploaded ({hint})") from None
    except (errors.HFValidationError, OSError, ValueError) as failure:
        raise error(f"{name}: cannot be uploaded ({_first_line(failure)})") from None
    return f"{_endpoint()}/{name}"


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
    """Whether a hub answers at all, with whatever."""
    from huggingface_hub import errors, get_hf_file_metadata

    try:
        get_hf_file_metadata(f"{endpoint}/gpt2/resolve/main/config.json", timeout=PATIENCE)
    except errors.HfHubHTTPError:
        return True
    except Exception:  # of whatever client the hub's package uses
        return False
    return True


@contextmanager
def _explained(name: str, error: type[JvaeError], tried: str = NO_FOLDER) -> Iterator[None]:
    """Errors of the hub's package as ours; what tells of an absent file passes."""
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
