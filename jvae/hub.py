"""Files of the Hugging Face hub: from its cache, or fetched.

A hub out of reach is known at once, by one question without retries; what the cache holds is used
all the same.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jvae.errors import JvaeError

PATIENCE = 5.0  # seconds until a hub that does not answer counts as out of reach


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
            return Path(huggingface_hub.hf_hub_download(name, path, local_files_only=offline))
    except (errors.EntryNotFoundError, errors.OfflineModeIsEnabled):
        return None


def absent(name: str, lacks: str, error: type[JvaeError]) -> JvaeError:
    """The error for a repository of which no file came: why.

    Args:
      lacks: what is wrong where the hub answers, such as "no config.json".
    """
    if _reachable():
        return error(f"{name}: {lacks}")
    return error(
        f"{name}: no folder here, not in the Hugging Face cache, and the hub is not reachable (or "
        "HF_HUB_OFFLINE is set); give a local folder, or connect once to fill the cache"
    )


def folder(name: str, error: type[JvaeError]) -> Path:
    """A whole repository, from the cache where it is there. Raises: `error`."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        with _explained(name, error):
            offline = not _reachable()
            return Path(huggingface_hub.snapshot_download(name, local_files_only=offline))
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise absent(name, "holds no files", error) from None


def _reachable() -> bool:
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT)


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
def _explained(name: str, error: type[JvaeError]) -> Iterator[None]:
    """Errors of the hub's package as ours; what tells of an absent file passes."""
    from huggingface_hub import errors

    try:
        yield
    except (errors.EntryNotFoundError, errors.OfflineModeIsEnabled):
        raise
    except errors.RepositoryNotFoundError:
        raise error(
            f"{name}: no folder here and no repository on the Hugging Face hub by that name (or a "
            "private one, for which `hf auth login` is needed)"
        ) from None
    except (errors.HFValidationError, errors.HfHubHTTPError, OSError, ValueError) as failure:
        reason = (str(failure).strip() or type(failure).__name__).splitlines()[0]
        raise error(f"{name}: cannot be fetched from the hub ({reason})") from None
