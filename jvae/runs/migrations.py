"""Maps parameter paths between this version and older ones.

Every config stores its layout version, `jvae.config.SCHEMA`. Each change of paths between versions
is one entry here, so that runs and exports of any age can be opened.
"""

import re
from typing import NamedTuple

from jvae import config as configs


class Move(NamedTuple):
    """Parameters of a family that moved; both patterns match from the start of a path segment."""

    schema: int  # first version with the new path
    family: str
    old: str
    new: str


# Parameters shared by a chain's prior and posterior moved to the latent.
MOVES = (
    Move(2, "della", "prior/chain/state/", "latent/chain/state/"),
    Move(2, "della", "prior/chain/latent/", "latent/chain/latent/"),
)


class Paths(NamedTuple):
    """Converts between current paths and those of a stored run or export.

    Paths of optimizer moments end in those of their parameters, so they are converted as well.
    """

    moves: tuple[Move, ...] = ()

    @classmethod
    def of(cls, config: object) -> "Paths":
        """For an artifact with this stored config (JSON); current paths if it is not text.

        Raises: ConfigError for text that is not a config, or a config of a newer jvae.
        """
        if not isinstance(config, str):
            return cls()
        schema, tree = configs.schema_of(config), configs.from_json(config)
        family = tree.model.get("family") if "model" in tree else None
        return cls(tuple(m for m in MOVES if schema < m.schema and m.family == family))

    def old(self, path: str) -> str:
        """The stored path of a parameter with this current path."""
        for move in reversed(self.moves):
            path = _replace(path, move.new, move.old)
        return path

    def new(self, path: str) -> str:
        """The current path of a stored parameter."""
        for move in self.moves:
            path = _replace(path, move.old, move.new)
        return path


def _replace(path: str, source: str, target: str) -> str:
    return re.sub(rf"(^|/){re.escape(source)}", rf"\g<1>{target}", path)
