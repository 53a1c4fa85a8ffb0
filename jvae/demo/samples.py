"""Sentences from a prior."""

from jvae.demo.state import Demo


def sample(
    demo: Demo,
    count: int,
    seed: int = 0,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    prior: str | None = None,
    label: str | None = None,
) -> list[str]:
    """Samples sentences from the model's prior or from one fitted to it, given a label if it has
    labels.

    Raises: InputError for an unknown label; ConfigError for settings out of range.
    """
    return demo.vae.sample(
        count, seed, prior=prior, label=label, temperature=temperature, top_p=top_p
    )
