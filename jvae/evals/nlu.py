"""Natural language understanding tasks on a trained run: `--mode=finetune --task=NAME`.

The same heads, label budgets and training draws are used with three encoders: the trained one, the
untrained one as its baseline, and, if training started from pretrained weights, these weights
alone.
"""

import dataclasses
import math
import re
from collections.abc import Callable

import numpy as np
from jax.sharding import Mesh

from jvae import models
from jvae.api import Params, has_latent
from jvae.data.pairs import encode_pairs
from jvae.errors import ConfigError
from jvae.evals import classify, nlu_tasks
from jvae.evals import probe as probes
from jvae.evals.card import Card, Report
from jvae.evals.classify import FEATURES, Examples
from jvae.evals.evaluation import settings, timed, untrained
from jvae.evals.nlu_tasks import TaskData
from jvae.evals.run_card import card_of
from jvae.fields import MOST, setting
from jvae.parallel import mesh as meshes
from jvae.parallel import processes
from jvae.runs import build
from jvae.runs.workdir import write_text
from jvae.tree import named_leaves

# Scores of every draw by encoder and label budget; None is the budget of all examples.
Scores = dict[str, dict[int | None, list[dict[str, float]]]]


@dataclasses.dataclass(frozen=True)
class Request:
    """The options of `--mode=finetune`."""

    data: str = setting("", help="Folder with train.tsv and valid.tsv; empty: TFDS glue/TASK.")
    features: str = setting(
        "pooled", choices=FEATURES, help="The encoder's pooled state, or the posterior mean."
    )
    freeze: bool = setting(True, help="False: the encoder trains with the head.")
    trainable: str = setting(
        "",
        pattern=True,
        help="Pattern of the parameters that train with the head, such as lora or adapter, if "
        "freeze is false; empty: all.",
    )
    per_class: tuple[int, ...] = setting(
        (), low=1, high=MOST, help="Training examples per class, one fit per value; empty: all."
    )
    draws: int = setting(10, low=1, high=1_000, help="Random draws per budget.")
    epochs: int = setting(3, low=1, high=10_000, help="Epochs, if the encoder trains.")
    lr: float = setting(
        2e-5, above=0.0, high=1.0, help="Peak learning rate, if the encoder trains."
    )
    batch: int = setting(32, low=1, high=65_536, help="Number of sentences or pairs per batch.")
    max_tokens: int = setting(128, low=8, high=MOST, help="Maximum tokens; longer texts are cut.")


def finetune(
    run: build.Run,
    mesh: Mesh,
    params: Params,
    step: int,
    task: str,
    request: Request,
    start: Params | None = None,
    seed: int = 0,
) -> Report:
    """Scores a task for every label budget; writes `eval/finetune.TASK.WAY.json` and `.txt`.

    WAY is the features and frozen, tuned or part (some parameters train), such as `pooled-frozen`;
    `-few` follows if the request has label budgets.

    Args:
      start: the pretrained parameters that training of the run started from, if any.
    Raises: ConfigError for features the model does not have; DataError for invalid task files.
    """
    name, kind = nlu_tasks.named(task)
    side = _check(run, request, len(kind.fields) == 2)
    data = nlu_tasks.read(task, request.data, run.config.data.tfds_dir)
    trains = _trainable(request, params)
    tuned = "part" if request.trainable else "tuned"
    way = f"{request.features}-{'frozen' if request.freeze else tuned}"
    way += "-few" if request.per_class else ""
    report = Report(f"{run.config.name}, {name}, {way}", _card(run, step, data))
    train, valid = _examples(run, side, request, data, report)
    encoders: dict[str, Params] = {"nlu": params, "untrained": untrained(run, mesh)}
    if start is not None:
        encoders["backbone"] = start
    classes, label_e = len(data.names), data.train.label_e
    kinds_e = label_e if classes else np.zeros(len(label_e), np.int32)
    budgets = _budgets(report, kinds_e, request.per_class)
    extract = classify.extractor(run.model, request.features)
    way_of = classify.Settings(request.epochs, request.lr, request.batch)
    trainer = classify.Trainer(extract, classes, way_of, trains)
    scores: Scores = {}
    for who, weights in encoders.items():
        with timed(report, f"{who}_s"), meshes.inside(mesh):
            how = (extract, weights, train, valid, label_e, classes)
            predict = _predictor(*how, request, trainer, seed)
            scores[who] = {
                size: [
                    nlu_tasks.scores(predict(ids, draw), data.valid.label_e, classes)
                    for draw, ids in enumerate(_draws(kinds_e, size, request.draws, seed))
                ]
                for size in budgets
            }
    _add(report, scores, data)
    if processes.first():
        place = run.workdir / "eval" / f"finetune.{name}.{way}"
        write_text(place.with_name(f"{place.name}.json"), report.to_json())
        write_text(place.with_name(f"{place.name}.txt"), report.table() + "\n")
    return report


def _check(run: build.Run, request: Request, pair: bool) -> tuple[str, int]:
    """The side the posterior reads, and its number of tokens.

    Raises: ConfigError for features the model does not have.
    """
    model, family = run.model, run.config.model.family
    limits = models.family(family).limits(build.model_config(run.config))
    if not has_latent(model):
        raise ConfigError(f"finetune: model.family={family} has no encoder")
    if "cond" in limits:
        raise ConfigError("finetune: this model reads a source text, which tasks do not have")
    if model.post.sampler is not None and (pair or not request.freeze):
        what = "pairs of sentences" if pair else "--finetune.freeze=false"
        raise ConfigError(f"finetune: model.family={family} has no encoder, which {what} need")
    if request.features == "pooled" and model.post.features is None:
        raise ConfigError(
            f"finetune: model.family={family} has no pooled state; add --finetune.features=mean"
        )
    side = "enc" if "enc" in limits else "dec"
    return side, min(limits[side], request.max_tokens)


def _trainable(request: Request, params: Params) -> Callable[[str], bool]:
    """Whether the parameter of a name trains with the head.

    Raises: ConfigError for a pattern that no name matches, or with a frozen encoder.
    """
    if not request.trainable:
        return lambda name: True
    if request.freeze:
        raise ConfigError("--finetune.trainable needs --finetune.freeze=false")
    pattern = re.compile(request.trainable)
    names = named_leaves(params)
    if not any(map(pattern.search, names)):
        parts = sorted({part for name in names for part in name.split("/")})
        raise ConfigError(
            f"--finetune.trainable={request.trainable!r} matches no parameter; their names consist "
            f"of {', '.join(parts)}"
        )
    return lambda name: pattern.search(name) is not None


def _card(run: build.Run, step: int, data: TaskData) -> Card:
    card = card_of(run, settings(run.config), step, "test")
    card.data, card.sentences = data.files, len(data.valid.label_e)
    card.preset = card.seen_in_train_pct = None  # these describe the run's own test split
    card.baselines = {"nlu": "untrained model, same draws"}
    return card


def _examples(
    run: build.Run, side: tuple[str, int], request: Request, data: TaskData, report: Report
) -> tuple[Examples, Examples]:
    """Both splits as tokens, in rows of the same width to limit recompilation."""
    name, limit = side
    tokenizer = run.encoder if name == "enc" else run.decoder
    sides = []
    for split, part in (("train", data.train), ("valid", data.valid)):
        encoded, cut = encode_pairs(tokenizer, part.first, part.second, limit)
        if cut:
            report.notes.append(f"{split}: {cut} of {len(part.first)} cut to {limit} tokens.")
        sides.append(encoded)
    longest = max(int(encoded.lengths.max()) for encoded in sides)
    row = min(-(-longest // 8) * 8, limit)
    train, valid = (Examples(encoded, row, tokenizer.pad_id, name) for encoded in sides)
    return train, valid


def _budgets(report: Report, kinds_e: np.ndarray, sizes: tuple[int, ...]) -> tuple[int | None, ...]:
    """The budgets with enough examples, None for all of them; adds a note on each other one."""
    for size in sizes:
        if fault := probes.budget_fault(kinds_e, size):
            report.notes.append(f"{size} of each class are left out: {fault} in training.")
    return tuple(size for size in sizes if not probes.budget_fault(kinds_e, size)) or (None,)


def _draws(kinds_e: np.ndarray, size: int | None, count: int, seed: int) -> list[np.ndarray]:
    """Training examples of every draw; a single draw if it includes all examples."""
    if size is None:
        return [np.arange(len(kinds_e))]
    return probes.draws_of(kinds_e, size, count, seed)


def _predictor(
    extract: classify.Extract,
    weights: Params,
    train: Examples,
    valid: Examples,
    label_e: np.ndarray,
    classes: int,
    request: Request,
    trainer: classify.Trainer,
    seed: int,
) -> Callable[[np.ndarray, int], np.ndarray]:
    """(training examples, number of the draw) -> predictions for the validation split."""
    if not request.freeze:
        return lambda ids, draw: trainer.predict(weights, train, label_e, ids, valid, seed + draw)
    train_ed, valid_ed = (
        classify.frozen_features(extract, weights, part, request.batch, seed)
        for part in (train, valid)
    )

    def predict(ids: np.ndarray, draw: int) -> np.ndarray:
        del draw  # a frozen head has one optimum
        return classify.fit_frozen(train_ed[ids], label_e[ids], classes)(valid_ed)

    return predict


def _add(report: Report, scores: Scores, data: TaskData) -> None:
    """Adds rows for every budget and score, with the untrained encoder as the baseline."""
    majority = f"most frequent {probes.majority(data.valid.label_e):.1f}" if data.names else ""
    for size, draws in scores["nlu"].items():
        end = "" if size is None else f"_each_{size}"
        for name in draws[0]:
            by_encoder = {who: [draw[name] for draw in scores[who][size]] for who in scores}
            value, baseline = (float(np.mean(by_encoder[who])) for who in ("nlu", "untrained"))
            count = len(draws)
            parts = [f"{count} draws, their sd"] if count > 1 else []
            parts += [majority] if name == "accuracy" else []
            if "backbone" in by_encoder:
                parts.append(f"backbone alone {np.mean(by_encoder['backbone']):.1f}")
            note, se = "; ".join(parts), probes.sd(by_encoder["nlu"])
            if name == "accuracy" and count == 1:
                share = value / 100
                se = 100 * math.sqrt(share * (1 - share) / len(data.valid.label_e))
            row = f"nlu_{name}{end}"
            report.add(row, value, "%", se=se, baseline=baseline, note=note)
