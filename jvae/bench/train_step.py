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


def call_batches(setting: Setting) -> list[Batch]:
    """The batches of a call, as NumPy arrays."""
    return setting.train_batches(setting.batches)


def works(setting: Setting) -> list[Work]:
    """The compiled step that `jvae.training.loop` runs."""
    batches = call_batches(setting)
    phase = phases.resolve(setting.run.config)[-1]
    current = program.compile_phase(setting.run, phase, setting.mesh, begin=0)
    on_device = [meshes.to_device(batch, setting.mesh) for batch in batches]
    key = build.seeds(setting.run.config.seed)["train"]
    cost: dict[Any, float] = {}
    for batch in on_device:
        if batch.dec.token_bt.shape not in cost:
            traced = current.train_step.trace(current.abstract, batch, key)
            cost[batch.dec.token_bt.shape] = matmul_flops(traced.jaxpr)
    work = Work(
        name="step",
        call=_updates(current, cases.copy_of()(setting.params), on_device, key),
        sentences=cases.sentences(*batches),
        tokens=cases.useful_tokens(*batches),
        shapes=cases.shapes(*batches),
        fill=cases.fill(*batches),
        flops=flops.training(setting, cases.lengths(batches)),
        program_flops=sum(cost[batch.dec.token_bt.shape] for batch in batches),
        extra={"updates": len(batches)},
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


def beside(setting: Setting) -> list[Work]:
    """PyTorch programs on the same sentences, for the one system that has a PyTorch version."""
    if setting.run.config.model.family != "optimus":
        return []
    return peers.training(setting, call_batches(setting), "step")


CASE = Case(
    subjects.by_preset((*subjects.TINY, subjects.MEDIUM, subjects.SMOLLM2)),
    works,
    peers=beside,
    brief=len(subjects.TINY) + 1,  # updates of the last take seconds
)
