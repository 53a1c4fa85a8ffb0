"""Encodes sentences to posterior means; without an encoder, to the end of one Langevin chain each.

A call encodes the first batches of the test split; useful tokens are those the posterior reads.
"""

import itertools

import jax
import numpy as np

from jvae.api import has_latent
from jvae.bench import cases, subjects
from jvae.bench.cases import Case, Setting
from jvae.bench.harness import Work
from jvae.data.dataset import eval_batches
from jvae.inference.scoring import means
from jvae.parallel.flops import matmul_flops


def works(setting: Setting) -> list[Work]:
    """The program of this case; none for a language model."""
    model = setting.run.model
    if not has_latent(model):
        return []
    stream = eval_batches(setting.run.data["test"], setting.run.rows)
    batches = list(itertools.islice(stream, setting.batches))
    on_device, key = [jax.device_put(batch) for batch in batches], jax.random.key(0)

    def call() -> list[jax.Array]:
        return [means(model.gen, model.post, None, setting.params, b, key) for b in on_device]

    traced = [means.trace(model.gen, model.post, None, setting.params, b, key) for b in on_device]
    read = [cases.sides(b).get("enc", b.dec).segment_bt for b in batches]
    work = Work(
        name="means",
        call=call,
        sentences=cases.sentences(*batches),
        tokens=sum(int((np.asarray(segment_bt) > 0).sum()) for segment_bt in read),
        shapes=cases.shapes(*batches),
        fill=cases.fill(*batches),
        program_flops=sum(matmul_flops(trace.jaxpr) for trace in traced),
    )
    return [work]


CASE = Case(subjects.by_preset(), works)
