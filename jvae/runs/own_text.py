"""`--config=auto`: chooses a preset and values that suit your corpus, from its statistics."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jvae.config import dataclass_from
from jvae.data import corpus
from jvae.data.formats import Reader
from jvae.data.tokenizers import train_bpe
from jvae.errors import ConfigError

NAME = "auto"  # name of the config that requests it
READ = 50_000  # examples used for the statistics; the corpus may have more
TOO_FEW = 2_000  # lines; with fewer, pretrained weights know more of the language than the text
LONG = 100  # words per text above which documents are split into sentences
USES = 25  # how often an entry of a trained tokenizer should be used, on average
VOCABULARY = (400, 8_000)  # smallest and largest vocabulary
UPDATES = (1_500, 8_000)  # fewest and most updates
CHECKS, EVERY = 20, 25  # checks of a run, but with this many updates between them
WORD_BYTES = 6  # a text without spaces counts as words of this many bytes
WORD_TOKENS = 1.4  # tokens per word that rows are sized for, whatever the vocabulary
SPECIAL = 2  # tokens added to every text
LONGER = 1.5  # other texts may have this many times the tokens of the longest one read
ROW = 64  # tokens per row, unless texts are long


class Facts(NamedTuple):
    """Statistics of a corpus. Words are separated by whitespace; a text with few spaces, such as
    Chinese, has as many as its bytes are worth (`WORD_BYTES`).

    tokens, most_tokens: mean and maximum per text, with the vocabulary of `vocabulary`.
    """

    lines: int
    mean: float  # words per text
    longest: int
    most: int  # words that 99 % of the texts do not exceed
    words: int  # total number of words
    different: int
    once: float  # share of distinct words that occur once
    tokens: float
    most_tokens: int
    labels: int = 0
    source: bool = False


class Choice(NamedTuple):
    """The base config, the values to set by key, and a line of explanation per decision."""

    preset: str
    values: dict[str, bool | float | str]
    reasons: list[str]


def read(data: ConfigDict, vocab: int | None = None) -> Facts:
    """Computes the statistics of `data.train`.

    Args:
      vocab: entries of the tokenizer, if you set them.
    Raises: ConfigError if it names no text; DataError for text that cannot be read.
    """
    if not data.train:
        raise ConfigError("--config=auto reads your text: add --config.data.train=FILE")
    reader = {field.name: data[field.name] for field in dataclasses.fields(Reader)}
    # Length limits off: the lengths are to be measured.
    reader |= dict(on_error="drop", max_words=None, sentences=False)
    corpus_read = corpus.survey(
        data.train, dataclass_from(Reader, reader, "data"), corpus.cache_dir(data.cache)
    )
    texts, lengths, counts, labels = [], [], Counter(), set()
    for _, located in zip(range(READ), corpus_read.examples(), strict=False):
        text = " ".join(filter(None, (located.example.text, located.example.source)))
        words = text.split()
        texts.append(text)
        lengths.append(max(len(words), len(text.encode()) // WORD_BYTES))
        counts.update(words)
        labels.add(located.example.label)
    length_n = np.array(lengths)
    share = len(corpus_read) / len(lengths)
    words = round(share * length_n.sum())
    tokenizer = train_bpe(texts, vocab or vocabulary(words))
    token_n = np.array([len(ids) for ids in tokenizer.encode_batch(texts)])
    return Facts(
        lines=len(corpus_read),
        mean=float(length_n.mean()),
        longest=int(length_n.max()),
        most=math.ceil(np.quantile(length_n, 0.99)),
        words=words,
        different=len(counts),
        once=sum(count == 1 for count in counts.values()) / len(counts),
        tokens=float(token_n.mean()),
        most_tokens=int(token_n.max()),
        labels=len(labels) if data.label else 0,
        source=bool(data.source),
    )


def vocabulary(words: int) -> int:
    """Entries of the tokenizer for a text of this many words."""
    return _rounded(min(max(words / USES, VOCABULARY[0]), VOCABULARY[1]))


def choose(facts: Facts, steps: int | None = None) -> Choice:
    """Chooses a config for a corpus. Pure: the same statistics give the same config.

    Args:
      steps: updates, if you set their number; warm-up and checks are shares of it.
    """
    n, values, reasons = facts.lines, {}, []

    def say(text: str, **chosen: bool | float | str) -> None:
        values.update({key.replace("__", "."): value for key, value in chosen.items()})
        reasons.append(text)

    reasons.append(
        f"text: {n:,} lines of {facts.mean:.1f} words (99 % up to {facts.most}, longest "
        f"{facts.longest}), {facts.different:,} distinct words, {100 * facts.once:.0f} % of them "
        "once" + (f", {facts.labels} labels" if facts.labels else "")
    )
    preset = "della:tiny" if facts.source else "optimus:tiny"
    why = "reads a source" if facts.source else "keeps its latent in use from scratch"
    small = (
        f"; {n:,} lines are too few to learn a language from: --config=optimus:smollm2 starts from "
        "pretrained weights and needs fewer"
        if n < TOO_FEW
        else ""
    )
    reasons.append(f"preset: {preset}, which {why}{small}")
    if facts.source:
        values["model.conditional"] = True

    cut = facts.most > LONG and not facts.source
    words = min(facts.mean, 25.0) if cut else facts.mean
    if cut:
        n = max(n, round(facts.words / words))
        say(
            f"data.sentences=true: documents of up to {facts.most} words are split into sentences",
            data__sentences=True,
        )
    vocab = vocabulary(facts.words)
    say(
        f"data.vocab={vocab}, byte-level BPE: no word is unknown, and an entry is seen about "
        f"{facts.lines * facts.tokens / vocab:.0f} times",
        data__tokenizer_kind="bpe",
        data__vocab=vocab,
    )
    longest = facts.most_tokens * LONGER
    if facts.longest > LONG:
        longest = 3 * LONG  # a rare word takes several tokens
        say(
            f"data.max_words={LONG}, data.on_error=drop: longer texts are left out and counted",
            data__max_words=LONG,
            data__on_error="drop",
        )
    positions = _power(max(longest + SPECIAL, 64))
    for role in ("decoder",) if facts.source else ("encoder", "decoder"):
        values[f"model.{role}.positions"] = positions

    width, layers, rate = (128, 2, 3e-3) if n < 20_000 else (192, 3, 2e-3)
    if n >= 100_000:
        width, layers, rate = 256, 4, 1e-3
    dropout = 0.3 if n < 5_000 else 0.2 if n < 100_000 else 0.1 if n < 200_000 else 0.0
    for role in ("decoder",) if facts.source else ("encoder", "decoder"):
        sizes = dict(width=width, layers=layers, unroll=layers, mlp=4 * width, dropout=dropout)
        values |= {f"model.{role}.{key}": value for key, value in sizes.items()}
    reasons.append(f"model: {layers} layers of width {width}, larger with more text")
    why = f"without it, a model of this size memorises {n:,} texts" if dropout else "enough text"
    reasons.append(f"dropout={dropout:g}: {why}")

    update = min(max(n / 60, 16), 64)  # texts per update that rows are sized for
    by_words = words * WORD_TOKENS + SPECIAL
    row = ROW if by_words < 40 else _power(2 * by_words)
    rows = max(round(update * by_words / row), 2)
    tokens = facts.tokens * words / facts.mean + SPECIAL
    read = rows * row / tokens  # texts per update, if rows were full
    epochs = min(max(40 * math.sqrt(5_000 / n), 8), 60)
    steps = steps or _rounded(min(max(epochs * n / update, UPDATES[0]), UPDATES[1]))
    say(
        f"data.batch_rows={rows} rows of {row} tokens, about {read:.0f} texts per update; "
        f"train.steps={steps:,}, {steps * read / n:.1f} times through the text",
        data__row_tokens=row,
        data__batch_rows=rows,
        train__steps=steps,
    )
    say(
        f"optim.lr={rate:g} after optim.warmup_steps={steps // 20} (5 % of the run), then falling",
        optim__lr=rate,
        optim__warmup_steps=steps // 20,
    )
    check = max(steps // CHECKS, EVERY)
    say(
        "train.patience=4: training ends after four checks without a better validation -ELBO, of "
        f"{max(steps // check, 1)}, once the KL weight is final",
        train__patience=4,
        train__check_every=check,
        train__log_every=check // 2,
    )
    return Choice(preset, values, reasons)


def describe(choice: Choice, flags: Mapping[str, str]) -> list[str]:
    """The explanations, and the values that flags set instead."""
    kept = [key for key in flags if key in choice.values]
    note = [f"as you set: {', '.join(f'{key}={flags[key]}' for key in kept)}"] if kept else []
    return [*choice.reasons, *note]


def _rounded(value: float) -> int:
    """Rounds to two significant digits."""
    size = 10 ** max(int(math.log10(value)) - 1, 0)
    return round(value / size) * size


def _power(value: float) -> int:
    return 1 << math.ceil(math.log2(value))


def reference() -> str:
    """Markdown: the choices for corpora of several sizes, with sentences of ten words."""
    lines = [
        "| lines | `data.vocab` | layers x width | dropout | `data.batch_rows` | `train.steps` | "
        "`optim.lr` |",
        "| --- " * 7 + "|",
    ]
    for n in (1_000, 2_000, 5_000, 20_000, 50_000, 100_000, 500_000):
        facts = Facts(n, 10, 40, 25, 10 * n, n, once=0.5, tokens=14, most_tokens=56)
        chosen = choose(facts).values
        model = {key: chosen[f"model.decoder.{key}"] for key in ("layers", "width", "dropout")}
        vocab, rows = chosen["data.vocab"], chosen["data.batch_rows"]
        lines.append(
            f"| {n:,} | {vocab:,} | {model['layers']} x {model['width']} | {model['dropout']:g} "
            f"| {rows} | {chosen['train.steps']:,} | {chosen['optim.lr']:g} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
