"""The data pipeline alone: plans, packs and builds arrays, without a model or device.

Sentence lengths follow three corpora, resampled from twenty-one quantiles of each. They count
words, which a tokenizer splits further, so that a sentence differs in length between the sides.
With `--data` the sentences come from the files. Batches come from one thread, as in training.
"""

import itertools
from typing import Any

import numpy as np

from jvae.bench import cases, subjects
from jvae.bench.cases import Case, Setting
from jvae.bench.harness import Work
from jvae.data.dataset import Dataset, RowSpec, batches, block_rows, eval_batches
from jvae.data.plan import propose_rows
from jvae.data.rows import Encoded
from jvae.data.sources import Lines

# Words of a sentence at 0, 5, ..., 100 %: training files of the language-modelling corpora.
QUANTILES = {
    "ptb": (1, 6, 9, 11, 12, 14, 15, 16, 18, 19, 20, 22, 23, 24, 26, 27, 29, 31, 34, 39, 82),
    "yahoo": (
        *(20, 24, 28, 32, 36, 40, 45, 50, 55, 60, 67),
        *(74, 81, 89, 98, 109, 120, 133, 151, 171, 200),
    ),
    "snli": (2, 4, 5, 6, 6, 6, 7, 7, 8, 8, 9, 9, 10, 11, 11, 12, 13, 15, 17, 20, 69),
}
PIECES = dict(enc=0.15, dec=0.12)  # share of the words that are split once more
SENTENCES = 20_000
ROW_TOKENS, ROWS = 256, 64


def lengths_like(corpus: str, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Token counts of `count` sentences on both sides, start and end included."""
    chance = np.random.default_rng(seed)
    quantiles = QUANTILES[corpus]
    place = np.linspace(0, 1, len(quantiles))
    words_e = np.rint(np.interp(chance.random(count), place, quantiles)).astype(np.int64)
    return {side: words_e + chance.binomial(words_e, cut) + 2 for side, cut in PIECES.items()}


def synthetic(lengths: dict[str, np.ndarray]) -> Dataset:
    """A split of sentences with these lengths and arbitrary tokens."""
    count = len(lengths["dec"])
    sides = {
        side: Encoded(np.ones(tokens_e.sum(), np.int32), np.append(0, np.cumsum(tokens_e)))
        for side, tokens_e in lengths.items()
    }
    nothing_e = np.zeros(count, np.int64)
    lines = Lines([""] * count, nothing_e, nothing_e, (), {})
    pad = dict.fromkeys(sides, 0)
    return Dataset(lines, sides["dec"], sides.get("enc"), None, pad, nothing_e, nothing_e, ())


def works(setting: Setting) -> list[Work]:
    """Programs for the config's data if it names files; otherwise for the three corpora."""
    if setting.run.config.data.train:
        return [_work("files", setting.run.data["train"], setting.run.rows)]
    programs = []
    for corpus in QUANTILES:
        lengths = lengths_like(corpus, SENTENCES)
        proposal = propose_rows(lengths, ROW_TOKENS)
        spec = RowSpec(
            proposal.row["dec"], enc_row=proposal.row["enc"], slots=proposal.slots, batch_rows=ROWS
        )
        programs.append(_work(corpus, synthetic(lengths), spec))
    return programs


def _work(name: str, dataset: Dataset, spec: RowSpec) -> Work:
    """Each call builds the batches of one epoch of an endless stream, including planning."""
    plan = block_rows(dataset, spec)
    count = -(-len(plan.ids_rs) // spec.batch_rows)
    stream = batches(dataset, spec)
    first = next(eval_batches(dataset, spec))

    def call() -> Any:
        last: Any = None
        for batch, _ in itertools.islice(stream, count):
            last = batch
        return last

    return Work(
        name=name,
        call=call,
        sentences=len(dataset),
        tokens=int(dataset.target_lengths.sum()),
        shapes=cases.shapes(first),
        fill=plan.fill | {"slots": plan.slot_fill},
        compiles=False,
        extra={"batches": count, "examples": len(dataset)},
    )


CASE = Case({preset: (subjects.OPTIMUS,) for preset in ("cpu", "gpu", "tpu")}, works)
