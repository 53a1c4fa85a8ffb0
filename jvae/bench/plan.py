"""Selects what a benchmark command measures."""

import argparse

from jvae.bench import CASES
from jvae.bench.cases import Case, Subject
from jvae.errors import ConfigError


def plan(given: argparse.Namespace) -> list[tuple[Subject, dict[str, Case]]]:
    """The models to measure, each once, with the cases that include it.

    Raises: ConfigError for an unknown case, or one without a subject under the preset.
    """
    unknown = sorted(set(given.case) - set(CASES))
    if unknown:
        raise ConfigError(f"no case {unknown[0]!r}; there are {', '.join(CASES)}")
    found: dict[Subject, dict[str, Case]] = {}
    for name in given.case or CASES:
        case = CASES[name]
        subjects = [Subject(given.config)] if given.config else case.subjects[given.preset]
        subjects = subjects if given.case else subjects[: case.brief]
        if not subjects and given.case:
            raise ConfigError(f"{name}: not measured under --preset={given.preset}")
        for subject in subjects:
            found.setdefault(subject.on(given.data), {})[name] = case
    return list(found.items())
