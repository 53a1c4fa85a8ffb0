"""Updates of the last phase of training, on the first batches of the training stream in turn.

A call makes one update per batch: batches differ in tokens and, with buckets, in row length.
"""

from collections.abc import Callable, Sequence
from typing import Any

from jax import Array

from jvae.api import Batch, Params
from jvae.bench import cases, flops, peers, subjects
from jvae.bench.cases import Case, Setting
from jvae.bench.harness import Work
from jvae.parallel import mesh as meshes
from jvae.parallel.flops import matmul_flops
from jvae.runs import build, phases
from jvae.training import program


def call_batches(this: Setting) -> list[Batch]:
    """The batches of a call, as NumPy arrays."""
    return this.train_batches(this.batches)


def works(this: Setting) -> list[Work]:
    """The compiled step that `jvae.training.loop` runs."""
    held = call_batches(this)
    phase = phases.resolve(this.run.config)[-1]
    current = program.compile_phase(this.run, phase, this.mesh, begin=0)
    on_device = [meshes.to_device(batch, this.mesh) for batch in held]
    key = build.seeds(this.run.config.seed)["train"]
    cost: dict[Any, float] = {}
    for batch in on_device:
        if batch.dec.token_bt.shape not in cost:
            traced = current.train_step.trace(current.abstract, batch, key)
            cost[batch.dec.token_bt.shape] = matmul_flops(traced.jaxpr)
    work = Work(
        name="step",
        call=_updates(current, cases.copy_of()(this.params), on_device, key),
        sentences=cases.sentences(*held),
        tokens=cases.useful_tokens(*held),
        shapes=cases.shapes(*held),
        fill=cases.fill(*held),
        flops=flops.training(this, cases.lengths(held)),
        program_flops=sum(cost[batch.dec.token_bt.shape] for batch in held),
        extra={"updates": len(held)},
    )
    return [work]


def _updates(
    current: program.Program, params: Params, batches: Sequence[Batch], key: Array
) -> Callable[[], Any]:
    """A call makes several updates, continuing where the previous call stopped."""
    state = current.start(params)

    def call() -> Any:
        nonlocal state
        sums: Any = None
        for batch in batches:
            state, sums = current.train_step(state, batch, key)
        return sums

    return call


def beside(this: Setting) -> list[Work]:
    """PyTorch programs on the same sentences, for the one system that has a PyTorch version."""
    if this.run.config.model.family != "optimus":
        return []
    return peers.training(this, call_batches(this), "step")


CASE = Case(subjects.every((*subjects.TINY, subjects.MEDIUM)), works, peers=beside)
