"""A demo of a model whose latent counts letters."""

import pytest

from jvae.demo.examples import Examples
from jvae.demo.state import Demo
from tests.tools.letters import LABELS, TEXTS, Spelt


@pytest.fixture
def demo() -> Demo:
    return Demo("spelt", Spelt(), Examples(TEXTS, LABELS, "6 sentences"), {"flow": ("x", "y")})
