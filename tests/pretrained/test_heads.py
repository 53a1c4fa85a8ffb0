"""Heads in pretrained files that no model of ours has are left aside, for every backbone."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from jvae.backbones import BACKBONES, LAYOUTS
from jvae.errors import WeightsError
from jvae.models.common import unboxed
from jvae.nn.backbone import name_of
from jvae.pretrained import backbones, files, names
from jvae.pretrained.names import Vocab

VOCAB = 32
# Heads of transformers' classes, and modules after the encoder in sentence-transformers' files.
HEADS = (
    *("score.weight", "classifier.weight", "classifier.bias", "qa_outputs.weight"),
    *("classification_head.dense.weight", "2.linear.weight", "2.linear.bias", "3.norm.weight"),
)


class Stack:
    """A tiny stack of zeros under the names of its family's files."""

    def __init__(self, name: str):
        self.layout = LAYOUTS[name]
        config = BACKBONES[name].tiny(VOCAB)
        assert name_of(config) == name
        stack = BACKBONES[name].stack(config)
        role = "decoder" if "decode" in BACKBONES[name].abilities else "encoder"
        init, _ = unboxed(lambda key: {role: stack.init(key)})
        self.params = jax.eval_shape(init, jax.random.key(0))
        section = ConfigDict({**vars(config), "lora": None})
        self.table = self.layout.table(section, Vocab(VOCAB, VOCAB), role, role, None)
        zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), self.params)
        prefix, unprefixed = self.layout.files.saved_prefix, self.layout.files.unprefixed
        self.arrays = {
            name if name in unprefixed else prefix + name: array
            for name, array in names.write(self.table, zeros, tied=False).items()
        }

    def fit(self, *more: str) -> names.Fit:
        """Matches the stack's own tensors and more of them with its table."""
        arrays = self.arrays | {name: np.zeros((3, 16), np.float32) for name in more}
        checkpoint = files.Checkpoint("here", {}, files.of_arrays(arrays), False, ())
        return names.fit(
            self.table, backbones.canonical(self.layout.files, checkpoint), self.params
        )


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_a_classification_head_is_left_aside_and_listed(name):
    stack = Stack(name)
    assert stack.fit().ignored == ()
    assert stack.fit(*HEADS).ignored == tuple(sorted(HEADS))
    for unknown in ("scores.weight", "2.weight", "0.linear.weight"):
        with pytest.raises(WeightsError, match="that no part of the model uses"):
            stack.fit(unknown)
