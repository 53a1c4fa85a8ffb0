"""Numbers that the original systems and Hugging Face's classes produced, for the parity tests.

All of them lie in `shared/fixtures` next to the checkout, if present. The repository
holds one case per original system and one per family of backbones, in `tests/reference`, so that
the parity tests run in every checkout; `tests/tools/take_reference.py` writes them.
"""

from pathlib import Path

import pytest

WHOLE = Path(__file__).parents[3] / "shared/fixtures"
KEPT = Path(__file__).parents[1] / "reference"


def path(name: str) -> Path:
    """A file or folder by its path below either folder; skips the test if it is in neither."""
    for place in (WHOLE, KEPT):
        if (place / name).exists():
            return place / name
    pytest.skip(f"the fixture {name} is not here")
