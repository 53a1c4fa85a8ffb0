"""Small models with their data, opened once for all tests of the benchmarks."""

from collections.abc import Callable

import pytest

from jvae.bench import cases, harness
from jvae.bench.cases import Setting, Subject

STACK = dict(width=8, mlp=16, heads=2, layers=2, init_std=0.3)
ROWS = ("data.batch_rows=2", "data.row_tokens=32", "data.vocab=300")


def stack(side: str) -> tuple[str, ...]:
    return tuple(f"model.{side}.{name}={value}" for name, value in STACK.items())


@pytest.fixture(scope="session")
def opened(tmp_path_factory) -> Callable[..., Setting]:
    """opened(spec, *changes): a model on sixty short sentences."""
    path = tmp_path_factory.mktemp("bench") / "mine.txt"
    path.write_text("".join(f"the {'old ' * (i % 4)}cat saw {i} dogs\n" for i in range(60)))

    def open_one(spec: str, *changes: str) -> Setting:
        subject = Subject(spec, (*changes, *ROWS)).on(str(path))
        return cases.setting(subject, harness.PRESETS["cpu"])

    return open_one


@pytest.fixture(scope="session")
def optimus(opened) -> Setting:
    return opened("optimus", *stack("encoder"), *stack("decoder"), "model.latent=2")


@pytest.fixture(scope="session")
def lm(opened) -> Setting:
    return opened("lm", *stack("decoder"))


@pytest.fixture(scope="session")
def sri(opened) -> Setting:
    sizes = ("model.decoder.width=4", "model.decoder.hidden=6", "model.decoder.dropout=0")
    return opened("sri:ptb", *sizes, "model.latent=2", "model.chain.steps=2")


@pytest.fixture(scope="session")
def sri_transformer(opened) -> Setting:
    return opened("sri:transformer", *stack("decoder"), "model.latent=2", "model.chain.steps=2")
