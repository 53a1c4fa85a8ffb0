"""Estimators of published code, errors included, to explain published numbers. Do not report them
as results.

There is one file per system; `blocks` applies the requested ones to a model and its evaluation.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Key

from jvae.api import Batch, Params, TextVAE
from jvae.evals.compat import adavae, della, lagging, optimus, sri, t5vae, textae
from jvae.evals.compat.draws import collect_draws
from jvae.evals.compat.shared import CompatRow, Facts, flat
from jvae.evals.latent import PosteriorSet, gaussian_entropy
from jvae.evals.likelihood import LikelihoodResult, TextCounts
from jvae.runs.console import Value


class Mode(NamedTuple):
    """One published estimator: its own number of draws (0: none), its warning, its rows."""

    draws: int
    released: bool  # whether it draws and scores like the released AdaVAE
    warning: str
    rows: Callable[[Facts], list[CompatRow]]


MODES = {
    "optimus": Mode(0, False, optimus.WARNING, optimus.rows),
    "t5vae": Mode(1, False, t5vae.WARNING, t5vae.rows),
    "della": Mode(della.SAMPLES, False, della.WARNING, della.rows),
    "adavae": Mode(adavae.SAMPLES, True, adavae.WARNING, adavae.rows),
    "lagging": Mode(0, False, lagging.WARNING, lagging.rows),
    "sri": Mode(0, False, sri.WARNING, sri.rows),
    "textae": Mode(0, False, textae.WARNING, textae.rows),
}


class Block(NamedTuple):
    """The results of one mode for a model."""

    mode: str
    warning: str
    rows: list[CompatRow]


def blocks(
    modes: Sequence[str],
    model: TextVAE,
    params: Params,
    batches: Callable[[], Iterable[Batch]],
    key: Key[Array, ""],
    likelihood: LikelihoodResult,
    posts: PosteriorSet,
    counts: TextCounts,
    ours: dict[str, Value],
    chunk: int = 1,
    short_run: LikelihoodResult | None = None,
) -> list[Block]:
    """The requested modes over the sentences of `likelihood`; MI and AU over those of `posts`.

    Args:
      batches: yields the sentences of `likelihood` again.
      key: that of `likelihood`, so that the draws are the same.
      ours: values of the report by name, shown for comparison.
      short_run: result of `jvae.evals.change_of_variables`; None for a model with an encoder.
    """
    gaussian = gaussian_entropy(model.metric_post, posts.post) is not None
    ordinary = max([1, *(MODES[m].draws for m in modes if not MODES[m].released)])
    draws, kl_eg = collect_draws(model, params, batches(), key, ordinary, chunk=chunk)
    released = None
    if gaussian and any(MODES[m].released for m in modes):
        draws_needed = max(MODES[m].draws for m in modes if MODES[m].released)
        released, _ = collect_draws(
            model, params, batches(), key, draws_needed, chunk=chunk, released=True
        )
    scores = likelihood.scores
    facts = Facts(
        nll_at={k: np.asarray(v, np.float64) for k, v in scores.bound_e.items()},
        rec_e=np.asarray(scores.rec_e),
        kl_eg=kl_eg,
        kl_e=np.asarray(scores.kl_e),
        tokens_e=np.asarray(scores.scored_e),
        words_e=counts.words_e[likelihood.id_e],
        draws=draws,
        released=released,
        groups=model.latent_shape[0],
        mean_egz=posts.mean_egz,
        log_var_ez=flat(np.asarray(posts.post.log_var_egz)) if gaussian else None,
        z_ez=flat(posts.z_egz) if gaussian else None,
        ours=ours,
        short_run=short_run,
        short_run_words=0 if short_run is None else int(counts.words_e[short_run.id_e].sum()),
    )
    return [Block(mode, MODES[mode].warning, MODES[mode].rows(facts)) for mode in modes]
