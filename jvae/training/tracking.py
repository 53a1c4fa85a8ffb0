"""Running statistics of a posterior, moved by every update.

They are parameters without a gradient: a further pass of the encoder over the batch of an update,
with the parameters that come out of it and without dropout or noise, says what they move to. So
they are those of the function that evaluation computes, however the loss was measured.
"""

from collections.abc import Callable

from jax import lax
from jaxtyping import Array, Key

from jvae.api import Batch, Params, TextVAE
from jvae.runs.metrics import Sums
from jvae.training.step import TrainState

TrainStep = Callable[[TrainState, Batch, Key[Array, ""]], tuple[TrainState, Sums]]


def tracked(model: TextVAE, train_step: TrainStep) -> TrainStep:
    """A train step that moves the running statistics of the model's posterior; the same step where
    that has none.
    """
    track = model.post.track
    if track is None:
        return train_step

    def step(state: TrainState, batch: Batch, base: Key[Array, ""]) -> tuple[TrainState, Sums]:
        new, sums = train_step(state, batch, base)

        def moved(params: Params) -> Params:
            return track(params, batch)

        # An update that was skipped, as it was not finite, moves nothing.
        params = lax.cond(sums["finite"].sum > 0, moved, lambda params: params, new.params)
        return new._replace(params=params), sums

    return step
