"""Profiles a benchmark's programs: share of time by kind of operation, as a Markdown table.

    python -m jvae.bench.profile train_step                       every config of the case
    python -m jvae.bench.profile decode --config=optimus:tiny     one config
    python -m jvae.bench.profile train_step --preset=gpu

Times come from JAX's profiler, summed over the threads or streams that run operations, so shares
are of work, not of waiting.
"""

import argparse
import gzip
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jvae.bench import CASES, cases, harness
from jvae.bench.plan import plan
from jvae.cli import allocator
from jvae.errors import ConfigError, JvaeError

CALLS = 4  # calls to profile
# By the names XLA gives to operations of its backends; the first match counts.
KINDS = (
    ("collectives", r"all-|reduce-scatter|collective"),
    ("matrix products", r"dot|ynn|gemm|matmul|cublas|cudnn|convolution|custom-call"),
    ("copies and transposes", r"copy|transpose|slice|concatenate|gather|scatter|pad|bitcast"),
    ("reductions", r"reduce"),
    ("elementwise, fused", r"fusion"),
)
OTHER = "other"


def kind(operation: str) -> str:
    """The main kind of an operation of a compiled program, by its name."""
    return next((name for name, pattern in KINDS if re.search(pattern, operation)), OTHER)


def operations(events: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Microseconds by operation from trace events; the time of a loop goes to its body."""
    spent: Counter[str] = Counter()
    for event in events:
        operation = event.get("args", {}).get("hlo_op")
        if (
            event.get("ph") == "X"
            and operation
            and not re.match(r"while|call|conditional", operation)
        ):
            spent[operation] += event["dur"]
    return spent


def shares(times: Mapping[str, float]) -> list[tuple[str, float, str]]:
    """(kind, share in %, its longest operation) of all time, largest first.

    Raises: ConfigError if there is none.
    """
    total = sum(times.values())
    if not total:
        raise ConfigError("the profiler saw no operation of a compiled program on this backend")
    by_kind: dict[str, Counter[Any]] = {}
    for operation, spent in times.items():
        by_kind.setdefault(kind(operation), Counter()).update(
            {re.sub(r"\.\d+$", "", operation): spent}
        )
    rows = [
        (name, 100.0 * sum(counts.values()) / total, counts.most_common(1)[0][0])
        for name, counts in by_kind.items()
    ]
    return sorted(rows, key=lambda row: -row[1])


def watched(call: Any) -> Counter[str]:
    """Profiles several calls, after one that compiles; returns their `operations`."""
    jax.block_until_ready(call())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(CALLS):
                jax.block_until_ready(call())
        (path,) = Path(folder).rglob("*.trace.json.gz")
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return operations(json.load(file)["traceEvents"])


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m jvae.bench.profile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("case", nargs="+", help=", ".join(CASES))
    parser.add_argument("--preset", default="cpu", help=", ".join(harness.PRESETS))
    parser.add_argument("--config", help="a config and preset to use instead of the case's own")
    args = parser.parse_args(argv, argparse.Namespace(data=None))
    lines = ["| case | model | program | kind | share of time, % | longest |", "|" + " --- |" * 6]
    try:
        preset = harness.check_platform(args.preset)
        for subject, named_cases in plan(args):
            setting = cases.setting(subject, preset)
            for name, case in named_cases.items():
                for work in case.works(setting):
                    head = f"| `{name}` | `{setting.run.config.name}` | {work.name} "
                    rows = shares(watched(work.call))
                    lines += [
                        f"{head}| {what} | {share:.1f} | `{longest}` |"
                        for what, share, longest in rows
                    ]
            jax.clear_caches()
    except JvaeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    allocator.restart()
    sys.exit(main(sys.argv[1:]))
