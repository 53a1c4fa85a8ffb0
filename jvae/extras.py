"""Optional dependencies. `setup.py` has an extra for each group; its packages are imported where
they are needed, and a command that needs them says so before it does any work.
"""

import importlib.util

from jvae.errors import ConfigError

# Extra: names its packages are imported by.
EXTRAS = {
    "figures": ("matplotlib", "sklearn"),
    "probes": ("sklearn",),
    "bertscore": ("bert_score",),
    "wandb": ("wandb",),
    "datasets": ("datasets",),
    "peer": ("torch",),
}


def missing(extra: str, purpose: str) -> str | None:
    """What to install for a purpose; None where its packages are present."""
    absent = [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    verb = "is" if len(absent) == 1 else "are"
    return (
        f"{purpose} needs {' and '.join(absent)}, which {verb} not installed: pip install -e "
        f"'.[{extra}]'"
    )


def require(extra: str, purpose: str) -> None:
    """Raises: ConfigError naming the extra to install, where a package of it is missing."""
    if message := missing(extra, purpose):
        raise ConfigError(message)
