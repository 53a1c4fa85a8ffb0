"""NLL_K beside K bare decoder passes over the same tokens, at two values of K.

The bar is 1.3: the encoder, the densities and the sampling of K latents may add 30 %.
"""

from functools import partial
from typing import Any

import jax
import numpy as np

from jvae.bench.cases import Case, Setting, shapes, useful_tokens
from jvae.bench.harness import Work
from jvae.evals.likelihood import bare_passes, score_batch

SAMPLES = (20, 100)
CHUNK = 1


def works(this: Setting) -> list[Work]:
    """Both programs at every K."""
    model, batch, key = this.run.model, this.batch(), jax.random.key(0)
    sentences, tokens = int(np.sum(np.asarray(batch.valid_e))), useful_tokens(batch)
    made = []
    for k in SAMPLES:
        score = partial(score_batch(model, k, CHUNK), this.params, batch, key)
        bare = bare_passes(model, this.params, batch, key, k, chunk=CHUNK)
        for name, call in (("nll", score), ("passes", bare)):
            extra = {"k": k, "chunk": CHUNK}
            sizes = (sentences, k * tokens)
            made.append(Work(f"{name}_{k}", call, *sizes, shapes(batch), extra))
    return made


def compare(records: list[dict[str, Any]]) -> None:
    """Adds the cost ratio at each K and how far the larger K is from linear, by both clocks."""
    few, many = SAMPLES
    for clock, suffix in (("call_ms", ""), ("host_ms", "_host")):
        ms = {record["program"]: record[clock] for record in records}
        for record in records:
            if record["program"].startswith("nll"):
                k = record["k"]
                record[f"cost_ratio{suffix}"] = ms[f"nll_{k}"] / ms[f"passes_{k}"]
                record[f"over_linear{suffix}"] = ms[f"nll_{many}"] / ms[f"nll_{few}"] / (many / few)


CASE = Case("optimus", works, compare)
