"""The colours of figures and pages."""

from collections import Counter
from collections.abc import Sequence

# Okabe & Ito 2008: distinguishable with any colour vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4B3F72", "#8C6D31")
INK, FAINT, OTHER = "#222222", "#666666", "#c9c9c9"
NEW = "#b34700"  # colour of new words, dark enough to read


def color_of(labels: Sequence[str]) -> dict[str, str]:
    """Colours of the most frequent labels, most frequent first; the others take `OTHER`."""
    order = [value for value, _ in Counter(labels).most_common()]
    colored = order if len(order) <= len(COLORS) else order[: len(COLORS) - 1]
    return dict(zip(colored, COLORS, strict=False))
