"""Benchmarks: one JSON line per program on standard output, a table on standard error.

python -m jvae.bench                                    every case, on the CPU
python -m jvae.bench startup                            for every model; above, for Optimus alone
python -m jvae.bench train_step --config=optimus:smollm2    too long for a run of all cases
python -m jvae.bench train_step decode --preset=gpu --out=rows.jsonl
python -m jvae.bench --peer=torch                       also PyTorch, in the same run
python -m jvae.bench iw_nll --config=optimus:tiny_cls   a config other than the case's own
python -m jvae.bench data --data=ptb/train.txt          sentences of a file

To add rows from a file to the documents: `python -m jvae.experiments.results take rows.jsonl`.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from jvae.bench import CASES, cases, harness, peers, speed
from jvae.bench.cases import Case, Subject
from jvae.bench.plan import plan
from jvae.cli import allocator
from jvae.errors import ConfigError, JvaeError


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jvae.bench",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("case", nargs="*", help=f"{', '.join(CASES)}; all of them by default")
    parser.add_argument("--preset", default="cpu", help=", ".join(harness.PRESETS))
    parser.add_argument("--config", help="a config and preset to use instead of each case's own")
    parser.add_argument("--data", help="files of sentences to use instead of the embedded corpus")
    parser.add_argument("--peer", help=f"also time another library: {', '.join(peers.PEERS)}")
    parser.add_argument(
        "--windows", type=int, default=harness.WINDOWS, help="timed windows, at least 3"
    )
    parser.add_argument("--seconds", type=float, help="minimum length of a window, in seconds")
    parser.add_argument("--out", type=Path, help="append the lines to this file instead")
    return parser.parse_args(argv)


def measure(
    subject: Subject, named_cases: dict[str, Case], preset: harness.Preset, peer: bool, **how: Any
) -> Iterator[list[dict[str, Any]]]:
    """Records of each case of one model. `how`: command and count of `harness.records`."""
    setting = cases.setting(subject, preset)
    for name, case in named_cases.items():
        works = case.works(setting)
        if not works:
            continue
        works += case.peers(setting) if peer and case.peers else []
        records = harness.records(name, works, preset, setting.run.config, **how)
        case.compare(records)
        yield records


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    args = _arguments(argv)
    words = [word for word in argv if not word.startswith("--out=")]  # does not affect any number
    command = " ".join(["python -m jvae.bench", *words])
    begin, rows = time.monotonic(), []
    try:
        if args.windows < 3:
            raise ConfigError(
                f"--windows={args.windows}: expected at least 3, for a median and its spread"
            )
        preset = harness.check_platform(args.preset)
        preset = preset._replace(window_s=args.seconds or preset.window_s)
        if args.peer:
            peers.require(args.peer)
        selection = plan(args)
        _write([], args.out)  # a file that cannot be written fails before anything is measured
        for number, (subject, named_cases) in enumerate(selection, 1):
            print(f"{number} of {len(selection)}: {subject.spec}", file=sys.stderr, flush=True)
            for records in measure(
                subject, named_cases, preset, bool(args.peer), command=command, count=args.windows
            ):
                _write(records, args.out)
                rows += records
            jax.clear_caches()  # programs of finished models occupy memory
        if not (args.case or args.config or args.data or args.peer):
            whole = speed.whole_run(time.monotonic() - begin, rows[0])
            _write([whole], args.out)
    except JvaeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\n{speed.text_table(rows)}", file=sys.stderr)
    print(f"{len(rows)} programs in {time.monotonic() - begin:.0f} s", file=sys.stderr)
    return 0


def _write(rows: Sequence[dict[str, Any]], path: Path | None) -> None:
    lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
    if path is None:
        print(lines, end="", flush=True)
        return
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(lines)
    except OSError as error:
        print(lines, end="", flush=True)
        raise ConfigError(f"--out={path}: cannot be written ({error})") from error


if __name__ == "__main__":
    allocator.restart()
    # Compile times must not come from the cache, and JAX and PyTorch may share a device.
    jax.config.update("jax_enable_compilation_cache", False)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    sys.exit(main(sys.argv[1:]))
