"""Converts text to token ids and back, with a pretrained or newly trained tokenizer.

Any tokenizer with a `tokenizers` backend works. Special tokens around a text x, by the rule of
`jvae.data.special_tokens`:

  [CLS] x [SEP]                 BERT and related models
  <BOS> x <EOS>, pad <PAD>      GPT-2: the three are added, as in Optimus
  <s> x </s>                    RoBERTa, Llama 2, and tokenizers trained here
  <|im_start|> x <|im_end|>     SmolLM2, as stated in its files
  x </s>; decoder <pad> x </s>  T5

Byte-level BPE adds one space before the text, unless the files next to the tokenizer say otherwise,
so that a first word has the same id as elsewhere; decoding removes it.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    trainers,
)

from jvae import hub
from jvae.data import special_tokens, tokenizer_files, vocabulary_files
from jvae.data.special_tokens import Special
from jvae.errors import ConfigError, DataError

FILE = "tokenizer.json"
_ROLES = ("encoder", "decoder")
_OWN = ("<pad>", "<s>", "</s>", "<unk>")  # ids 0 to 3 of a tokenizer trained here
LONGEST_WORD = 128  # bytes; longer words are cut into pieces for BPE training
# Sets of files that make up a tokenizer; the first complete set is used.
_LAYOUTS = (
    (FILE,),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("spiece.model",),
    ("sentencepiece.bpe.model",),
    ("tokenizer.model",),
)


@dataclass(frozen=True, eq=False)
class TextTokenizer:
    """A tokenizer in one role. Create it with `open_tokenizer`, `load` or `train_*`."""

    name: str  # hub name, folder or training method, for messages and the reporting card
    role: str  # 'encoder' or 'decoder'; they differ for T5 only
    vocab_size: int  # includes added special tokens
    pad_id: int
    start_id: int | None  # None for a T5 encoder
    end_id: int
    unk_id: int | None  # None if it can encode any text
    prefix: str  # added before every text
    fingerprint: str  # SHA-256 of the canonical tokenizer.json and of the stated special tokens
    special: Special
    backend: Tokenizer = field(repr=False)
    turns: str = ""  # separator of the turns of a text, which become `start a end b end`

    @property
    def control_ids(self) -> tuple[int, ...]:
        """Ids that must not occur inside a text: padding, start and end."""
        start = () if self.start_id is None else (self.start_id,)
        return tuple(dict.fromkeys((self.pad_id, *start, self.end_id)))

    @property
    def coding(self) -> str:
        """What determines the tokens of a text, apart from code."""
        return repr((self.fingerprint, self.start_id, self.end_id, self.prefix, self.turns))

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids (int32) of each text, including start and end id."""
        if self.turns:
            return self._turn_by_turn(texts)
        before = [] if self.start_id is None else [self.start_id]
        after = [self.end_id]
        out: list[np.ndarray] = []
        for first in range(0, len(texts), 4096):  # the backend's own records are large
            part = [self.prefix + text for text in texts[first : first + 4096]]
            with tokenizer_files.backend_errors(self.name):
                encoded = self.backend.encode_batch_fast(part, add_special_tokens=False)
            out += [np.array(before + encoding.ids + after, np.int32) for encoding in encoded]
        return out

    def _turn_by_turn(self, texts: Sequence[str]) -> list[np.ndarray]:
        parts = [self.turns_of(text) for text in texts]
        plain = replace(self, turns="")
        coded = iter(plain.encode_batch([turn for part in parts for turn in part]))
        starts = 0 if self.start_id is None else 1
        out = []
        for part in parts:
            first, *rest = (next(coded) for _ in part)
            out.append(np.concatenate([first, *(ids[starts:] for ids in rest)]))
        return out

    def turns_of(self, text: str) -> list[str]:
        """The turns of a text, at least one."""
        if not self.turns:
            return [text]
        return list(filter(None, map(str.strip, text.split(self.turns)))) or [""]

    def decode(self, ids: Iterable[int]) -> str:
        """Decodes token ids up to the first end id, without special tokens."""
        kept = [int(i) for i in ids]
        if kept and kept[0] == self.start_id:
            kept = kept[1:]
        if self.end_id in kept:
            kept = kept[: kept.index(self.end_id)]
        kept = [i for i in kept if i not in self.control_ids]
        with tokenizer_files.backend_errors(self.name):
            return self.backend.decode(kept, skip_special_tokens=False).removeprefix(self.prefix)

    @property
    def vocabulary_sha256(self) -> str:
        """SHA-256 of the tokens and their ids alone, independent of the backend's version."""
        vocab = sorted(self.backend.get_vocab(with_added_tokens=True).items())
        return hashlib.sha256(json.dumps(vocab).encode()).hexdigest()

    def for_role(self, role: str) -> "TextTokenizer":
        """The same tokenizer in the given role."""
        return _wrap(self.backend, role, self.name, self.special)

    def with_backend(self, backend: Tokenizer) -> "TextTokenizer":
        """Another vocabulary with the same name, role and special tokens."""
        return _wrap(backend, self.role, self.name, self.special)

    def described(self) -> str:
        """A description of the start, end and padding tokens."""
        start, end, pad = (
            None if i is None else self.backend.id_to_token(i)
            for i in (self.start_id, self.end_id, self.pad_id)
        )
        begins = "nothing begins a text" if start is None else f"{start} begins a text"
        pads = "" if pad == end else f", {pad} pads"
        return f"{begins}, {end} ends it{pads}"

    def save(self, folder: str | Path, config: bool = False) -> None:
        """Writes all files that `load` needs; `tokenizer.json` is written last and atomically.

        `tokenizer_config.json` is written only if the token names alone do not determine the
        special tokens.

        Args:
          config: always write `tokenizer_config.json`, for `transformers`.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.special.stated or config:
            about = json.dumps(self.special.as_config(), indent=2, sort_keys=True) + "\n"
            _write(folder / special_tokens.CONFIG, about)
        _write(folder / FILE, _canonical(self.backend))


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def open_tokenizer(name_or_folder: str | Path, role: str, add: bool = True) -> TextTokenizer:
    """Opens a tokenizer from a local folder or, if there is no such folder, by hub name.

    Args:
      add: see `load`.
    Raises: DataError if it does not exist, its files cannot be read, the hub is needed but
      unreachable, or it has no usable special tokens.
    """
    name = os.fspath(name_or_folder)
    if Path(name).expanduser().exists():
        return load(Path(name).expanduser(), role, add=add)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise DataError(
            f"{name}: no such folder; "
            f"expected one with {FILE}, vocab.json + merges.txt or vocab.txt"
        )
    return load(_from_hub(name), role, name, add)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder contains a tokenizer."""
    return any(all((folder / file).is_file() for file in files) for files in _LAYOUTS)


def load(folder: str | Path, role: str, name: str = "", add: bool = True) -> TextTokenizer:
    """Loads a tokenizer from a folder written by `TextTokenizer.save` or in Hugging Face layout.

    Args:
      name: its name in messages; by default the folder.
      add: whether GPT-2's tokenizer gets three special tokens, see `special_tokens`.
    """
    folder = Path(folder)
    name = name or str(folder)
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "no such folder"
        raise DataError(f"{folder}: {problem}; expected the folder that holds {FILE}")
    try:
        if (folder / FILE).is_file():
            backend = tokenizer_files.open_file(folder / FILE)
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            backend = vocabulary_files.byte_bpe(folder)
        elif (folder / "vocab.txt").is_file():
            backend = vocabulary_files.word_pieces(folder)
        elif has_tokenizer(folder):  # SentencePiece
            backend = _from_transformers(str(folder))
        else:
            raise DataError(
                f"{folder}: no tokenizer files; "
                f"expected {FILE}, vocab.json + merges.txt or vocab.txt"
            )
    except DataError:
        raise
    except Exception as error:  # the backend raises plain Exception for a damaged file
        raise DataError(
            f"{folder}: tokenizer files cannot be read ({error}); copy them again"
        ) from error
    with tokenizer_files.backend_errors(name):
        return _wrap(backend, role, name, special_tokens.stated(folder, backend), add)


def train_word_level(
    texts: Iterable[str],
    vocab_size: int | None = None,
    min_count: int = 1,
    role: str = "decoder",
) -> TextTokenizer:
    """Trains a whitespace word tokenizer: the most frequent words, and <unk> for the rest.

    Args:
      vocab_size: maximum entries, including the four special tokens; None keeps every word.
      min_count: words that occur less often are left out.
    """
    if vocab_size is not None and vocab_size <= len(_OWN):
        raise ConfigError(
            f"a vocabulary of {vocab_size} leaves no room for words; expected more than {len(_OWN)}"
        )
    # Counted here because a word equal to a special token must not get a second id.
    count = Counter(word for text in texts for word in text.split())
    words = [
        w for w, n in sorted(count.items(), key=lambda item: (-item[1], item[0])) if n >= min_count
    ]
    entries = [*_OWN, *(word for word in words if word not in _OWN)][:vocab_size]
    if len(entries) == len(_OWN):
        raise DataError(
            "no words to train a tokenizer on: the corpus is empty or min_count too high"
        )
    backend = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(entries)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(special_tokens.added(_OWN))
    return _wrap(backend, role, f"word level, {len(entries)} entries")


def train_bpe(
    texts: Iterable[str], vocab_size: int = 8_000, role: str = "decoder"
) -> TextTokenizer:
    """Trains byte-level BPE, which can encode any text.

    Args:
      vocab_size: maximum entries, including the 256 bytes and the four special tokens.
    """
    smallest = 256 + len(_OWN)
    if vocab_size < smallest:
        raise ConfigError(
            f"a vocabulary of {vocab_size} is too small; byte-level BPE needs {smallest}"
        )
    backend = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # Merging is quadratic in a word's length, and a text without whitespace is one word.
    pieces = pre_tokenizers.FixedLength(LONGEST_WORD)
    backend.pre_tokenizer = pre_tokenizers.Sequence([byte_level, pieces])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens.added(_OWN),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator((f" {text}" for text in texts), trainer)
    backend.pre_tokenizer = byte_level
    return _wrap(backend, role, f"byte-level BPE, {backend.get_vocab_size()} entries")


def _wrap(
    backend: Tokenizer, role: str, name: str, said: Special | None = None, add: bool = True
) -> TextTokenizer:
    """Sets up a copy of a backend for jvae's conventions.

    Args:
      said: special tokens named by the files next to it.
      add: whether special tokens may be added, see `special_tokens`.
    """
    if role not in _ROLES:
        raise ValueError(f"role {role!r}: expected one of {_ROLES}")
    backend = Tokenizer.from_str(backend.to_str())
    backend.no_padding()
    backend.no_truncation()
    if isinstance(backend.model, models.WordPiece):
        # The default clean-up rewrites words: "do not" would be decoded as "don't".
        backend.decoder = decoders.WordPiece(cleanup=False)
    special = special_tokens.complete(backend, said, add)
    start, end, pad = (
        None if token is None else backend.token_to_id(token) for token in special[:3]
    )
    if end is None or pad is None:
        raise DataError(
            f"{name}: the tokenizer has no {' or '.join(special_tokens.END[:3])}; "
            "expected one like those of BERT, GPT-2, RoBERTa or T5, or an eos_token in "
            f"{special_tokens.CONFIG}"
        )
    byte_level = special_tokens.cuts_bytes(backend)
    if start is None and role == "decoder":
        start = end if byte_level else pad
    closed = not (byte_level or getattr(backend.model, "byte_fallback", False))
    text = _canonical(backend)
    if special.stated:
        text += json.dumps(special.as_config(), sort_keys=True)
    unk = next((i for i in map(backend.token_to_id, special_tokens.UNK) if i is not None), None)
    return TextTokenizer(
        name=name,
        role=role,
        vocab_size=max(backend.get_vocab(with_added_tokens=True).values()) + 1,
        pad_id=pad,
        start_id=start,
        end_id=end,
        unk_id=unk if closed else None,
        prefix=" " if special.space else "",
        fingerprint=hashlib.sha256(text.encode()).hexdigest(),
        special=special,
        backend=backend,
    )


def _canonical(backend: Tokenizer) -> str:
    return json.dumps(json.loads(backend.to_str()), sort_keys=True, separators=(",", ":"))


def _from_hub(name: str) -> Path:
    """The folder in the hub's cache with the tokenizer of a repository.

    Raises: DataError.
    """
    for files in _LAYOUTS:
        paths = [hub.file(name, file, DataError) for file in files]
        if None in paths:
            continue
        for file in (*special_tokens.FILES, vocabulary_files.ADDED):
            hub.file(name, file, DataError)
        return Path(str(paths[0])).parent
    raise hub.absent(name, f"no tokenizer files; expected {FILE}", DataError)


def _from_transformers(name: str) -> Tokenizer:
    """Loads the tokenizer of a folder that contains only a SentencePiece model."""
    from transformers import AutoTokenizer  # takes 0.7 s, so imported only when needed

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # OSError, ValueError, ImportError or hub errors, by cause
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{name}: its tokenizer cannot be opened ({reason}); a SentencePiece model alone needs "
            f"a {FILE} next to it or the sentencepiece package"
        ) from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise DataError(f"{name}: its tokenizer has no `tokenizers` backend; provide a {FILE}")
    return backend
