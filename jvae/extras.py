"""Optional dependencies. `setup.py` defines an extra for each group.

Packages are imported where they are needed. A command that needs a missing package fails before it
does any work.
"""

import importlib.util
from pathlib import Path

from jvae.errors import ConfigError

SETUP = Path(__file__).parents[1] / "setup.py"  # only a checkout has it
# Extra: import names of its packages.
EXTRAS = {
    "figures": ("matplotlib", "sklearn"),
    "probes": ("sklearn",),
    "demo": ("gradio",),
    "bertscore": ("bert_score",),
    "wandb": ("wandb",),
    "datasets": ("datasets",),
    "peer": ("torch",),
}


def missing(extra: str, purpose: str) -> str | None:
    """A message with the `pip` command for a missing extra; None if its packages are present."""
    absent = [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    verb = "is" if len(absent) == 1 else "are"
    package = f"-e '.[{extra}]'" if SETUP.is_file() else f"'jvae[{extra}]'"
    return (
        f"{purpose} needs {' and '.join(absent)}, which {verb} not installed: pip install {package}"
    )


def require(extra: str, purpose: str) -> None:
    """Raises: ConfigError naming the extra to install if one of its packages is missing."""
    if message := missing(extra, purpose):
        raise ConfigError(message)
