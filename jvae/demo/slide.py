"""Sentences between two others."""

from jvae.demo.state import Demo


def slide(demo: Demo, a: str, b: str, steps: int, how: str = "linear") -> list[str]:
    """Decodes evenly spaced points between the posterior means of two sentences.

    Args:
      how: "linear", or "slerp" for an arc.
    Raises: DataError for a sentence that is empty or too long.
    """
    return demo.vae.interpolate(a, b, steps, how=how)


def index(texts: list[str], share: float) -> int:
    """The index of the sentence at a position from 0 (first) to 1 (last)."""
    return round(share * (len(texts) - 1))
