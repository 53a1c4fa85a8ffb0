"""A page in the browser to play with a trained model.

python -m jvae.demo optimus-tiny                 a model that ships with jvae
python -m jvae.demo runs/mine --port=8000        a run, an export or a name on the hub
python -m jvae.demo my-export --corpus=my.txt    example sentences of your own
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from jvae import extras
from jvae.cli import allocator
from jvae.errors import JvaeError
from jvae.runs.console import safe_streams


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jvae.demo",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="run, export, shipped model or hub name")
    parser.add_argument("--corpus", default="", help="file of example sentences")
    parser.add_argument("--port", type=int, help="port; default: the first free one from 7860")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve; 0.0.0.0 is the local network"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of samples and Langevin chains")
    parser.add_argument(
        "--share",
        action="store_true",
        help="open a public address through Gradio's servers for a week",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    args = _arguments(argv)
    with safe_streams():
        logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
        for noisy in ("absl", "orbax", "jax", "httpx"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        try:
            extras.require("demo", "python -m jvae.demo")
            from jvae.cli import compile_cache  # imports JAX, so after the check above
            from jvae.demo import page, state

            compile_cache.keep()
            demo = state.load(args.run, args.corpus, args.seed)
            page.serve(demo, host=args.host, port=args.port, share=args.share)
        except JvaeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            pass
    return 0


if __name__ == "__main__":
    allocator.restart()
    sys.exit(main(sys.argv[1:]))
