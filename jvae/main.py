"""`python -m jvae.main`: the command line; see `jvae.cli.main`."""

import sys

from jvae.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
