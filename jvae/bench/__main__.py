"""Benchmarks, each a JSON line.

python -m jvae.bench                                    every case, on the CPU
python -m jvae.bench iw_nll --preset=gpu --out=rows.jsonl
python -m jvae.bench iw_nll --config=optimus:tiny_cls   another config than the case's own
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from jvae import config as configs
from jvae.bench import CASES, cases, harness
from jvae.errors import ConfigError, JvaeError


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jvae.bench",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("case", nargs="*", help=f"{', '.join(CASES)}; all of them by default")
    parser.add_argument("--preset", default="cpu", help=", ".join(harness.PRESETS))
    parser.add_argument("--config", help="a config and preset in place of each case's own")
    parser.add_argument("--out", type=Path, help="a file to append the lines to")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    given = _arguments(argv)
    command = " ".join(["python -m jvae.bench", *argv])
    try:
        unknown = sorted(set(given.case) - set(CASES))
        if unknown:
            raise ConfigError(f"no case {unknown[0]!r}; there are {', '.join(CASES)}")
        preset = harness.check_platform(given.preset)
        for name in given.case or CASES:
            case = CASES[name]
            this = cases.setting(configs.load(given.config or case.config), preset)
            works = case.works(this)
            records = harness.records(name, works, given.preset, this.run.config, command)
            case.compare(records)
            lines = "".join(json.dumps(record, sort_keys=True) + "\n" for record in records)
            print(lines, end="", flush=True)
            if given.out:
                with given.out.open("a", encoding="utf-8") as file:
                    file.write(lines)
    except JvaeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
