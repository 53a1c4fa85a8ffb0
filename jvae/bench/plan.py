"""Selects what a benchmark command measures."""

import argparse

from jvae.bench import CASES
from jvae.bench.cases import Case, Subject
from jvae.errors import ConfigError


def plan(args: argparse.Namespace) -> list[tuple[Subject, dict[str, Case]]]:
    """The models to measure, each once, with the cases that include it.

    Raises: ConfigError for an unknown case, or one without a subject under the preset.
    """
    unknown = sorted(set(args.case) - set(CASES))
    if unknown:
        raise ConfigError(f"no case {unknown[0]!r}; there are {', '.join(CASES)}")
    cases_of: dict[Subject, dict[str, Case]] = {}
    for name in args.case or CASES:
        case = CASES[name]
        subjects = case.subjects[args.preset]
        if args.config:
            # A config that the case measures anyway keeps the sizes it has there.
            planned = [subject for subject in subjects if subject.spec == args.config]
            subjects = planned or [Subject(args.config)]
        subjects = subjects if args.case else subjects[: case.brief]
        if not subjects and args.case:
            raise ConfigError(f"{name}: not measured under --preset={args.preset}")
        for subject in subjects:
            cases_of.setdefault(subject.on(args.data), {})[name] = case
    return list(cases_of.items())
