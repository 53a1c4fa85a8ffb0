"""The targets of the benchmarks, and whether they were met."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jvae.bench.langevin import PUBLISHED
from jvae.bench.speed import NOT_MEASURED, count

Row = Mapping[str, Any]


class Target(NamedTuple):
    """A target and the record whose value must meet it.

    most: the target is an upper limit; otherwise it is a lower limit.
    """

    text: str
    preset: str
    case: str
    config: str
    program: str
    value: Callable[[Row], float]
    bar: float
    most: bool = False

    def verdict(self, rows: Sequence[Row]) -> tuple[str, str]:
        """The newest value, and whether it meets the target."""
        key = (self.preset, self.case, self.config, self.program)
        matches = [
            row
            for row in rows
            if (row["preset"], row["case"], row["config"], row["program"]) == key
        ]
        if not matches:
            return NOT_MEASURED, "–"
        value = self.value(matches[-1])
        passed = value <= self.bar if self.most else value >= self.bar
        return count(value), "yes" if passed else "**no**"

    @property
    def bound(self) -> str:
        """The target as text."""
        return f"{'≤' if self.most else '≥'} {count(self.bar)}"


def _field(name: str) -> Callable[[Row], float]:
    return lambda row: row[name]


def _least_fill(row: Row) -> float:
    return 100 * min(row["fill"][side] for side in ("enc", "dec"))


def _training(preset: str, config: str, original: float) -> tuple[Target, ...]:
    case = (preset, "train_step", config)
    text = f"training speed of `{config}` relative to PyTorch"
    return (
        Target(f"{text}, original style", *case, "torch_original", _field("ratio"), original),
        Target(f"{text} at its best", *case, "torch_best", _field("ratio"), 1),
    )


def _chains(preset: str, bar: float) -> tuple[Target, ...]:
    program = f"chain_{PUBLISHED}"
    return tuple(
        Target(
            f"{PUBLISHED}-step Langevin, cost relative to its FLOP floor, `{config}`",
            *(preset, case, config, program, _field("over_floor"), bar, True),
        )
        for case, config in (
            ("langevin", "sri-ptb"),
            ("langevin_transformer", "sri-transformer"),
        )
    )


BASE = ("gpu", "train_step", "optimus-base")
WHOLE = "python -m jvae.bench --preset=cpu"
TARGETS = (
    *(
        Target(
            f"packing efficiency of the worse side, lengths like {name}, %",
            *("cpu", "data", "optimus-tiny", name, _least_fill, 95),
        )
        for name in ("ptb", "yahoo", "snli")
    ),
    *_training("cpu", "optimus-tiny", 2),
    *_training("cpu", "optimus-20m", 2),
    Target(
        "decoding speed relative to Hugging Face `generate`, 256 latents",
        *("cpu", "decode", "optimus-tiny", "torch_generate", _field("ratio"), 5),
    ),
    *_chains("cpu", 1.3),
    Target(
        "warm start to the first training step, s",
        *("cpu", "startup", "optimus-tiny", "first_step", _field("seconds"), 8, True),
    ),
    Target(
        f"`{WHOLE}`, all cases and models, s",
        *("cpu", "suite", "all", "whole", _field("seconds"), 600, True),
    ),
    Target(
        "training of `optimus-base`, share of peak (useful), %",
        *(*BASE, "step", lambda row: 100 * row["flops_share"], 40),
    ),
    *_training("gpu", "optimus-base", 10),
    Target(
        "decoding, tokens/s at 1,024 latents",
        *("gpu", "decode", "optimus-base", "latents_1024", _field("useful_tokens_per_s"), 1e6),
    ),
    Target(
        "decoding speed relative to Hugging Face `generate`, 1,024 latents",
        *("gpu", "decode", "optimus-base", "torch_generate", _field("ratio"), 10),
    ),
    *_chains("gpu", 1.2),
    Target(
        "NLL_500 of the PTB test file, s",
        *("gpu", "iw_nll", "optimus-base", "nll_500", _field("ptb_test_s"), 180, True),
    ),
)


def table(rows: Sequence[Row]) -> str:
    """Every target, its measured value, and whether it is met."""
    lines = ["| target | preset | bar | measured | passed |", "|" + " --- |" * 5]
    for target in TARGETS:
        value, passed = target.verdict(rows)
        lines.append(f"| {target.text} | {target.preset} | {target.bound} | {value} | {passed} |")
    return "\n".join(lines)
