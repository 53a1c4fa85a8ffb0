"""The old name of `python -m jvae.experiments.comparison`."""

import sys

from jvae.experiments.comparison import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
