"""Text metrics: reconstructions against originals, samples against test and training sets."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import combinations, zip_longest

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jvae.api import Batch, DecodeState, Generator, Params, Prompt, TextVAE, one_per_row
from jvae.decode import sampling
from jvae.evals.bleu import LONGEST, ORDER, References, ngrams, sacre_bleu
from jvae.evals.bleu import signature as bleu_signature
from jvae.evals.collect import collect, rows_of, to_host
from jvae.evals.latent import PosteriorSet
from jvae.runs.console import Value

REFERENCE_CAP = 10_000  # test sentences a sample is scored against
SELF_SAMPLES = 1_000  # samples scored against each other
PAIRED_SAMPLES = 200  # samples that are compared in all pairs


def _percent(share: float) -> float:
    return 100.0 * share


def exact_match(decoded: Sequence[str], original: Sequence[str]) -> float | None:
    """Share of lines that were decoded exactly, in %; None if there are none."""
    _check_lengths(decoded, original)
    if not decoded:
        return None
    return _percent(sum(a == b for a, b in zip(decoded, original, strict=True)) / len(decoded))


def corpus_bleu(decoded: Sequence[str], original: Sequence[str]) -> tuple[float, str]:
    """Corpus BLEU by sacreBLEU, 0 to 100, and its signature."""
    return corpus_bleu_of([[line] for line in original], decoded)


def corpus_bleu_of(
    references: Sequence[Sequence[str]], decoded: Sequence[str]
) -> tuple[float, str]:
    """Corpus BLEU of lines that each have one or more references, and its signature."""
    _check_lengths(decoded, references)
    metric = sacre_bleu(sentence=False)
    counts = {len(line_references) for line_references in references}
    # Transposed, as sacreBLEU expects: None where a line has fewer references than others.
    by_place = zip_longest(*references)
    score = metric.corpus_score(list(decoded), [list(column) for column in by_place]).score
    nrefs = "var" if len(counts) > 1 else max(counts)
    return float(score), bleu_signature(nrefs, sentence=False)


def seen_share(lines: Sequence[str], train: Iterable[str]) -> float | None:
    """Share of lines that are also in the training set, in %; None when there are none."""
    repeats = _among(train, lines)
    return _percent(sum(line in repeats for line in lines) / len(lines)) if lines else None


def _among(train: Iterable[str], lines: Iterable[str]) -> set[str]:
    """The lines that also occur in train, which is streamed because it may be large."""
    line_set = set(lines)
    return {line for line in train if line in line_set}


def reconstruction(
    decoded: Sequence[str],
    original: Sequence[str],
    train: Iterable[str] | None = None,
    ceiling: Sequence[str] | None = None,
) -> dict[str, Value]:
    """Corpus BLEU and exact match in %: over all sentences, over those not in train, and over those
    that the tokenizer round-trips. The share of the last group is the ceiling of exact match.

    Args:
      decoded: one line for each of `original`, in its order.
      ceiling: what a perfect model would print for each sentence: the text encoded and decoded by
        the decoder's tokenizer. Without it the share is None.
    Raises: ValueError if the numbers of lines differ or there are none.
    """
    if not original:
        raise ValueError("reconstruction: no lines. Expected at least one sentence.")
    score, signature = corpus_bleu(decoded, original)
    row: dict[str, Value] = {
        "exact_match_pct": exact_match(decoded, original),
        "exact_match_unseen_pct": None,
        "exact_match_ceiling_pct": None,
        "exact_match_reachable_pct": None,
        "bleu": score,
        "bleu_signature": signature,
    }
    if train is not None:
        train_lines = _among(train, original)
        unseen = [
            pair for pair in zip(decoded, original, strict=True) if pair[1] not in train_lines
        ]
        row["exact_match_unseen_pct"] = exact_match([d for d, _ in unseen], [o for _, o in unseen])
    if ceiling is not None:
        row["exact_match_ceiling_pct"] = exact_match(ceiling, original)
        triples = zip(decoded, original, ceiling, strict=True)
        reachable = [(d, o) for d, o, best in triples if best == o]
        row["exact_match_reachable_pct"] = exact_match(
            [d for d, _ in reachable], [o for _, o in reachable]
        )
    return row


def _check_lengths(decoded: Sequence[str], original: Sequence[object]) -> None:
    if len(decoded) != len(original):
        raise ValueError(
            f"{len(decoded)} decoded lines for {len(original)} originals. Expected one for each."
        )


def unpack(
    batch: Batch, most: int | None = None
) -> tuple[Int[np.ndarray, "e t"], Int[np.ndarray, "e"], np.ndarray]:
    """Tokens of `batch.dec` by example, padded to a power of two; lengths; which tokens are scored.

    Args:
      most: upper limit of the padded width; must be at least the longest example.
    """
    token_bt, segment_bt, scored_bt = to_host(
        (batch.dec.token_bt, batch.dec.segment_bt, batch.scored_bt)
    )
    slots = to_host(batch.id_e).shape[0] // token_bt.shape[0]
    row, column = np.nonzero(segment_bt)
    example = row * slots + segment_bt[row, column] - 1
    length_e = np.bincount(example, minlength=token_bt.shape[0] * slots)
    # Few distinct widths, so that the step loop below is not recompiled for every batch.
    width = 1 << int(max(int(length_e.max()), 2) - 1).bit_length()
    width = width if most is None else max(min(width, most), 2)
    token_et = np.zeros((length_e.size, width), token_bt.dtype)
    scored_et = np.zeros((length_e.size, width), bool)
    order = np.argsort(example, kind="stable")
    place = np.arange(example.size) - np.repeat(np.cumsum(length_e) - length_e, length_e)
    token_et[example[order], place] = token_bt[row, column][order]
    scored_et[example[order], place] = scored_bt[row, column][order]
    return token_et, length_e, scored_et


def _longest(batch: Batch) -> int:
    """Tokens of the longest example of `batch.dec`."""
    segment_bt = to_host(batch.dec.segment_bt)
    rows, segments = len(segment_bt), int(segment_bt.max()) + 1
    place_bt = np.arange(rows)[:, None] * segments + segment_bt
    count = np.bincount(place_bt.ravel(), minlength=rows * segments).reshape(rows, segments)
    return int(count[:, 1:].max(initial=0))  # segment 0 is padding


@partial(jax.jit, static_argnames=("gen",))
def _hits(
    gen: Generator, params: Params, batch: Batch, z_egz: Array, token_et: Array, scored_et: Array
) -> Int[Array, "e"]:
    """Counts scored tokens that the decoder ranks first given all earlier ones."""
    prompt = Prompt(token_et[:, :1], jnp.ones(token_et.shape[0], jnp.int32))
    cond = one_per_row(gen.condition(params, batch), batch.slots)
    logits_ev, state = gen.start(params, z_egz, prompt, token_et.shape[1], cond)

    def step(
        carry: tuple[Array, DecodeState], column: tuple[Array, Array]
    ) -> tuple[tuple[Array, DecodeState], Array]:
        logits_ev, state = carry
        token_e, scored_e = column
        hit_e = (sampling.best_token(logits_ev) == token_e) & scored_e
        return gen.step(params, state, token_e), hit_e

    _, hit_te = jax.lax.scan(step, (logits_ev, state), (token_et[:, 1:].T, scored_et[:, 1:].T))
    return jnp.sum(hit_te, axis=0)


def token_accuracy(
    model: TextVAE,
    params: Params,
    batches: Iterable[Batch],
    posts: PosteriorSet,
    *,
    baseline: bool = False,
) -> float:
    """Share of scored tokens ranked first under teacher forcing from the posterior mean, in %.

    Args:
      posts: must include the sentences of `batches`.
      baseline: compute the baseline, in which each sentence gets the mean of another one.
    Raises: DataError if a sentence is missing from `posts` or occurs twice.
    """
    source_e = posts.other() if baseline else np.arange(posts.id_e.size)
    batches = list(batches)
    # The model has positions up to its longest sentence, not up to the next power of two.
    most = max((_longest(batch) for batch in batches), default=None)

    def parts() -> Iterable[tuple[np.ndarray, dict[str, Array | np.ndarray]]]:
        for batch in batches:
            id_e = to_host(batch.id_e)
            filled = np.where(id_e < 0, posts.id_e[0], id_e)
            place = source_e[rows_of(posts.id_e, filled, "the collected posteriors")]
            token_et, _, scored_et = unpack(batch, most)
            mean_egz = posts.mean_egz[place]
            hit_e = _hits(model.gen, params, batch, mean_egz, token_et, scored_et)
            yield id_e, {"hit": hit_e, "scored": scored_et.sum(axis=1)}

    _, count = collect(parts())
    return _percent(float(count["hit"].sum()) / float(count["scored"].sum()))


def distinct(lines: Sequence[str]) -> dict[str, float | None]:
    """Dist-1 to Dist-4: distinct n-grams of whitespace words over all n-grams of the lines."""
    words = [line.split() for line in lines]
    row: dict[str, float | None] = {}
    for order in range(1, 5):
        grams = [gram for line in words for gram in ngrams(line, order)]
        row[f"dist_{order}"] = len(set(grams)) / len(grams) if grams else None
    return row


def _some(lines: Sequence[str], samples: int, seed: int) -> list[str]:
    """A random sample of the lines."""
    chosen = np.random.default_rng(seed).permutation(len(lines))[:samples]
    return [lines[int(i)] for i in chosen]


def self_bleu(lines: Sequence[str], samples: int = SELF_SAMPLES, seed: int = 0) -> float | None:
    """Mean sentence BLEU-4 of sampled lines, each against the others; None for fewer than two."""
    return self_bleus(lines, (ORDER,), samples, seed)[0]


def self_bleus(
    lines: Sequence[str], orders: Sequence[int], samples: int = SELF_SAMPLES, seed: int = 0
) -> list[float | None]:
    """`self_bleu` up to n-grams of each order."""
    if len(lines) < 2:
        return [None] * len(orders)
    members = _some(lines, samples, seed)
    references = References(members)
    return [
        float(np.mean([references.score(line, member=True, order=order) for line in members]))
        for order in orders
    ]


def bleus_against(
    lines: Sequence[str], test: Sequence[str], orders: Sequence[int], cap: int = REFERENCE_CAP
) -> list[float]:
    """Mean sentence BLEU, up to n-grams of each order, of each line with the first `cap` test
    sentences as its references.
    """
    references = References(test[:cap])
    return [
        float(np.mean([references.score(line, order=order) for line in lines])) for order in orders
    ]


def jaccard(lines: Sequence[str], samples: int = PAIRED_SAMPLES, seed: int = 0) -> float | None:
    """Shared bigrams divided by all bigrams of both lines, averaged over pairs of random lines;
    None for fewer than two lines.

    Bigrams are over whitespace words; a line with fewer than two words counts as one n-gram.
    Source: JS of Hu et al. 2022, who do not state the order.
    """
    if len(lines) < 2:
        return None
    words = [line.split() for line in _some(lines, samples, seed)]
    grams = [set(ngrams(line_words, 2)) or {tuple(line_words)} for line_words in words]
    return float(np.mean([len(a & b) / len(a | b) for a, b in combinations(grams, 2)]))


def fourgrams(lines: Iterable[str]) -> set[tuple[str, ...]]:
    """The 4-grams of whitespace words in a corpus."""
    return {gram for line in lines for gram in ngrams(line.split(), 4)}


def memorised(lines: Iterable[str], grams: set[tuple[str, ...]]) -> float | None:
    """Share of the 4-gram occurrences of the lines that are in `grams`, in %."""
    hits = [gram in grams for line in lines for gram in ngrams(line.split(), 4)]
    return _percent(sum(hits) / len(hits)) if hits else None


def generation(
    samples: Sequence[str],
    test: Sequence[str],
    train: Iterable[str] | None = None,
    seed: int = 0,
) -> dict[str, Value]:
    """Diversity of lines decoded from the prior, and their fit to the test set. All lines must come
    from one decoding setting.

    BLEU splits raw text with sacreBLEU's 13a and smooths exponentially; Dist-n and memorisation use
    whitespace words.

    Raises: ValueError if there are no samples or no test sentences.
    """
    if not samples or not test:
        raise ValueError(
            f"generation: {len(samples)} samples, {len(test)} test sentences. "
            "Expected some of both."
        )
    times = Counter(samples)
    bleu_4, bleu_5 = bleus_against(samples, test, (ORDER, LONGEST))
    self_4, self_5 = self_bleus(samples, (ORDER, LONGEST), seed=seed)
    row: dict[str, Value] = {
        "samples": len(samples),
        "distinct_lines": len(times),
        "duplicates_pct": _percent(sum(n for n in times.values() if n > 1) / len(samples)),
        "bleu_test": bleu_4,
        "bleu_test_5": bleu_5,
        "bleu_test_signature": bleu_signature(min(len(test), REFERENCE_CAP), sentence=True),
        "self_bleu": self_4,
        "self_bleu_5": self_5,
        "self_bleu_signature": bleu_signature(min(len(samples), SELF_SAMPLES) - 1, sentence=True),
        **distinct(samples),
        "jaccard": jaccard(samples, seed=seed),
        "memorised_pct": None,
        "memorised_test_pct": None,
    }
    if train is not None:
        sample_grams = fourgrams(samples) | fourgrams(test)
        train_grams = {
            gram for line in train for gram in ngrams(line.split(), 4) if gram in sample_grams
        }
        row["memorised_pct"] = memorised(samples, train_grams)
        row["memorised_test_pct"] = memorised(test, train_grams)
    return row
