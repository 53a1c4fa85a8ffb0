"""NLL_K compared with K bare decoder passes over the same tokens, at two values of K.

The target is a ratio of 1.3: encoder, densities and sampling of K latents may add 30 %.
"""

from functools import partial
from typing import Any

import jax

from jvae.bench import cases, subjects
from jvae.bench.cases import Case, Setting
from jvae.bench.harness import Work
from jvae.evals.cost import bare_passes
from jvae.latent.iw_bound import score_batch

SAMPLES = {"cpu": (20, 100), "gpu": (100, 500), "tpu": (100, 500)}
CHUNK = {"cpu": 1, "gpu": 10, "tpu": 10}
PTB_TEST = 3_761  # sentences, to extrapolate to the whole test file


def works(setting: Setting) -> list[Work]:
    """Both programs for every K."""
    model, batch, key = setting.run.model, setting.batch(), jax.random.key(0)
    sentences, tokens = cases.sentences(batch), cases.useful_tokens(batch)
    chunk = CHUNK[setting.preset.platform]
    programs = []
    for k in SAMPLES[setting.preset.platform]:
        score = partial(score_batch(model, k, chunk), setting.params, batch, key)
        bare = bare_passes(model, setting.params, batch, key, k, chunk=chunk)
        for name, call in (("nll", score), ("passes", bare)):
            work = Work(
                name=f"{name}_{k}",
                call=call,
                sentences=sentences,
                tokens=k * tokens,
                shapes=cases.shapes(batch),
                fill=cases.fill(batch),
                extra={"k": k, "chunk": chunk},
            )
            programs.append(work)
    return programs


def compare(records: list[dict[str, Any]]) -> None:
    """Adds the cost ratio for each K, and how far the cost of the larger K is from linear, in wall
    and CPU time.
    """
    few, many = sorted({record["k"] for record in records})
    for clock, suffix in (("call_ms", ""), ("host_ms", "_host")):
        ms = {record["program"]: record[clock] for record in records}
        for record in records:
            if record["program"].startswith("nll"):
                k = record["k"]
                record[f"cost_ratio{suffix}"] = ms[f"nll_{k}"] / ms[f"passes_{k}"]
                record[f"over_linear{suffix}"] = ms[f"nll_{many}"] / ms[f"nll_{few}"] / (many / few)
    for record in records:
        if record["program"].startswith("nll"):
            record["ptb_test_s"] = PTB_TEST / record["sentences_per_s"]


CASE = Case(subjects.by_preset((subjects.OPTIMUS,), (subjects.OPTIMUS_BASE,)), works, compare)
