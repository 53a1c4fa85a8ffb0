"""The old name of `python -m jvae.experiments.results`."""

import sys

from jvae.experiments.results import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
