"""Natural language understanding tasks: sources of their labelled sentences, and their scores."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from jvae.data.formats import Example, Reader, scan
from jvae.data.sources import TFDS, bad_line
from jvae.data.text_rules import BadLine
from jvae.errors import ConfigError, DataError
from jvae.evals.card import FileRecord, file_record


class Task(NamedTuple):
    """One task. `fields` are the features of its TFDS data set: one sentence, or a pair."""

    fields: tuple[str, ...]
    regression: bool = False
    valid: str = "validation"  # TFDS split that is scored; GLUE's test labels are not public


_PAIR = ("sentence1", "sentence2")
GLUE = {
    "cola": Task(("sentence",)),
    "sst2": Task(("sentence",)),
    "mrpc": Task(_PAIR),
    "stsb": Task(_PAIR, regression=True),
    "qqp": Task(("question1", "question2")),
    "mnli": Task(("premise", "hypothesis"), valid="validation_matched"),
    "qnli": Task(("question", "sentence")),
    "rte": Task(_PAIR),
    "wnli": Task(_PAIR),
}
SPLITS = ("train", "valid")
_SUFFIXES = (".tsv", ".tsv.gz")


class Labelled(NamedTuple):
    """Sentences or pairs with their labels: class numbers from 0, or real values."""

    first: list[str]
    second: list[str] | None
    label_e: np.ndarray


class TaskData(NamedTuple):
    """A task with its splits. names: the class names; empty for a regression."""

    train: Labelled
    valid: Labelled
    names: tuple[str, ...]
    files: list[FileRecord]  # entries of the reporting card


def named(name: str) -> tuple[str, Task]:
    """Looks up a task by name, such as `rte` or `glue/rte`. Raises: ConfigError."""
    plain = name.removeprefix("glue/")
    if plain not in GLUE:
        raise ConfigError(f"--task={name}: expected one of {', '.join(GLUE)}")
    return plain, GLUE[plain]


def read(name: str, folder: str, tfds_dir: str = "") -> TaskData:
    """Reads the sentences of a task from a folder or from TFDS.

    Args:
      folder: with train.tsv and valid.tsv, plain or .gz, of lines `label TAB sentence` or
        `label TAB first TAB second`; empty: the TFDS data set glue/NAME.
    Raises: ConfigError for an unknown task; DataError naming the file and line that cannot be read,
      or a label of `valid` that `train` does not have.
    """
    plain, task = named(name)
    splits, files = {}, []
    for split in SPLITS:
        if folder:
            path = _file(Path(folder).expanduser(), split)
            reader = Reader(
                format="tsv",
                header="false",
                quotes=False,
                label="0",
                source="1" if len(task.fields) == 2 else "",
                text=str(len(task.fields)),
            )
            files.append(file_record(path))
        else:
            path = f"{TFDS}glue/{plain}:{task.valid if split == 'valid' else split}"
            *first, text = task.fields
            source = first[0] if first else ""
            reader = Reader(text=text, source=source, label="label", tfds_dir=tfds_dir)
            files.append({"name": path})
        splits[split] = _examples(str(path), reader)
    return _numbered(splits, task, files)


def _file(folder: Path, split: str) -> Path:
    for suffix in _SUFFIXES:
        if (path := folder / f"{split}{suffix}").is_file():
            return path
    raise DataError(
        f"{folder}: has no {split}.tsv or {split}.tsv.gz; expected lines of a label and one "
        "sentence or two, separated by tabs"
    )


def _examples(path: str, reader: Reader) -> list[Example]:
    examples = []
    for line, entry in scan(path, reader):
        if isinstance(entry, BadLine):
            raise bad_line(f"{path}:{line}", entry)
        if isinstance(entry, Example):
            examples.append(entry)
    return examples


def _numbered(splits: dict[str, list[Example]], task: Task, files: list[FileRecord]) -> TaskData:
    names = () if task.regression else _classes(splits, files)
    number = _value if task.regression else {name: i for i, name in enumerate(names)}.__getitem__
    numbers = {split: [number(example.label) for example in rows] for split, rows in splits.items()}
    pair = len(task.fields) == 2
    train, valid = (
        Labelled(
            [example.source if pair else example.text for example in splits[s]],
            [example.text for example in splits[s]] if pair else None,
            np.array(numbers[s], np.float32 if task.regression else np.int32),
        )
        for s in SPLITS
    )
    return TaskData(train, valid, names, files)


def _classes(splits: dict[str, list[Example]], files: list[FileRecord]) -> tuple[str, ...]:
    """The labels of the training split, in order. Raises: DataError."""
    names = sorted({example.label for example in splits["train"]})
    if len(names) < 2:
        raise DataError(f"{files[0]['name']}: all labels are {names[0]!r}; expected two at least")
    if unseen := sorted({example.label for example in splits["valid"]} - {*names}):
        raise DataError(
            f"{files[1]['name']}: has the labels {', '.join(unseen)}; those of train are "
            f"{', '.join(names)}"
        )
    return tuple(names)


def _value(label: str) -> float:
    try:
        return float(label)
    except ValueError:
        raise DataError(
            f"label {label!r}: expected a number, as the task is a regression"
        ) from None


def scores(said_e: np.ndarray, label_e: np.ndarray, classes: int) -> dict[str, float]:
    """For classes: accuracy, macro F1, F1 of class 1 (if there are two) and Matthews correlation,
    in %. For values (`classes` 0): Spearman and Pearson correlation in %. A correlation with a
    constant is 0.
    """
    if not classes:
        from scipy import stats

        constant = np.ptp(said_e) == 0 or np.ptp(label_e) == 0
        ways = {"spearman": stats.spearmanr, "pearson": stats.pearsonr}
        return {
            name: 0.0 if constant else 100.0 * float(way(said_e, label_e).statistic)
            for name, way in ways.items()
        }
    from sklearn import metrics

    values = {"accuracy": metrics.accuracy_score(label_e, said_e)}
    labels = np.unique(label_e)
    values["macro_f1"] = metrics.f1_score(
        label_e, said_e, labels=labels, average="macro", zero_division=0
    )
    if classes == 2:
        values["f1"] = metrics.f1_score(label_e, said_e, pos_label=1, zero_division=0)
    values["matthews"] = metrics.matthews_corrcoef(label_e, said_e)
    return {name: 100.0 * float(value) for name, value in values.items()}
