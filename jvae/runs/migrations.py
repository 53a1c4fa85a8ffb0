"""Parameters under the paths that older versions stored them at.

A version of the layout, `jvae.config.SCHEMA`, is stored with every config. What moved between two
versions is one line here, so runs and exports of any age open.
"""

import re
from typing import NamedTuple

from jvae import config as configs


class Move(NamedTuple):
    """Parameters of a family that moved; both patterns hold from the start of a path segment."""

    schema: int  # the first with the new path
    family: str
    old: str
    new: str


# What a chain's prior and posterior share became the latent's.
MOVES = (
    Move(2, "della", "prior/chain/state/", "latent/chain/state/"),
    Move(2, "della", "prior/chain/latent/", "latent/chain/latent/"),
)


class Paths(NamedTuple):
    """Between today's paths and those of a stored run or export.

    Paths of optimizer moments, which end in those of their parameters, move with them.
    """

    moves: tuple[Move, ...] = ()

    @classmethod
    def of(cls, config: object) -> "Paths":
        """For what has this stored config (JSON); today's paths where it is not text.

        Raises: ConfigError for text that is no config, or one that a newer jvae wrote.
        """
        if not isinstance(config, str):
            return cls()
        schema, tree = configs.schema_of(config), configs.from_json(config)
        family = tree.model.get("family") if "model" in tree else None
        return cls(tuple(m for m in MOVES if schema < m.schema and m.family == family))

    def old(self, path: str) -> str:
        """Where a parameter of today's path is stored."""
        for move in reversed(self.moves):
            path = _replace(path, move.new, move.old)
        return path

    def new(self, path: str) -> str:
        """Today's path of a stored parameter."""
        for move in self.moves:
            path = _replace(path, move.old, move.new)
        return path


def _replace(path: str, source: str, target: str) -> str:
    return re.sub(rf"(^|/){re.escape(source)}", rf"\g<1>{target}", path)
