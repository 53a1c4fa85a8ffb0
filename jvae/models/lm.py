"""A language model as a model with an empty latent: the baseline of every table.

Its NLL is exact for every K. `lstm_lm` is the older name of this family for LSTMs.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jvae.api import TextVAE
from jvae.backbones import small
from jvae.latent import null
from jvae.models import recurrent
from jvae.models.common import unboxed
from jvae.models.family import FAMILIES, Family, Vocab
from jvae.models.generator import generator, room
from jvae.nn.backbone import StackConfig, abilities_of, stack_of
from jvae.pretrained.parts import stack_part


@dataclass(frozen=True)
class LmConfig:
    """One decoder stack, recurrent or not."""

    decoder: StackConfig


def limits(config: LmConfig) -> dict[str, int]:
    """Maximum tokens per example; there is no encoder side."""
    return {"dec": room(stack_of(config.decoder, "model.decoder"), None)}


def build(config: LmConfig) -> TextVAE:
    """Builds the model of a config; see `jvae.api.TextVAE`."""
    if "recurrent" in abilities_of(config.decoder):
        stack = stack_of(config.decoder, "model.decoder", "recurrent")
        init, axes = unboxed(lambda key: {"decoder": recurrent.init(stack, 0, key)})
        gen = recurrent.generator(stack, 0)
    else:
        stack = stack_of(config.decoder, "model.decoder", "decode")
        init, axes = unboxed(lambda key: {"decoder": stack.init(key)})
        gen = generator(stack, None)
    return TextVAE(init, axes, null.PRIOR, gen, null.POSTERIOR, null.LATENT_SHAPE)


def _register(name: str, stack: Callable[..., StackConfig], preset: str) -> None:
    def tiny(vocab: Vocab, **changes: object) -> LmConfig:
        return LmConfig(stack(vocab["dec"], **changes))

    FAMILIES.register(name)(
        Family(
            LmConfig,
            build,
            limits,
            tiny,
            parts=lambda model: stack_part(model.decoder, "decoder"),
            preset=preset,
        )
    )


_register("lm", small.decoder, "lm")
_register("lstm_lm", small.recurrent, "lm:lstm")
