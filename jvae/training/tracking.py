"""Running statistics of a posterior, updated after every optimizer step.

They are parameters without a gradient. An extra encoder pass over the batch, with the updated
parameters and without dropout or noise, provides their new values. They therefore describe the
function that evaluation computes, however the loss was measured.
"""

from collections.abc import Callable

from jax import lax
from jaxtyping import Array, Key

from jvae.api import Batch, Params, TextVAE
from jvae.runs.metrics import Sums
from jvae.training.step import TrainState

TrainStep = Callable[[TrainState, Batch, Key[Array, ""]], tuple[TrainState, Sums]]


def tracked(model: TextVAE, train_step: TrainStep) -> TrainStep:
    """A train step that also updates the running statistics of the model's posterior; returns the
    given step if there are none.
    """
    track = model.post.track
    if track is None:
        return train_step

    def step(state: TrainState, batch: Batch, base: Key[Array, ""]) -> tuple[TrainState, Sums]:
        new, sums = train_step(state, batch, base)

        def moved(params: Params) -> Params:
            return track(params, batch)

        # A skipped update (not finite) does not change the statistics either.
        params = lax.cond(sums["finite"].sum > 0, moved, lambda params: params, new.params)
        return new._replace(params=params), sums

    return step
