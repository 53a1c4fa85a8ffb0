"""`python -m jvae.main`, and the command `jvae`; see `jvae.cli.main`."""

import sys
from collections.abc import Sequence

from jvae.cli import allocator


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command, by default that of this process, and returns its exit code."""
    if argv is None:
        allocator.restart()
    from jvae.cli.main import main as run  # takes a second to import, so only after the restart

    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
