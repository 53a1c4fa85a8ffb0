"""Determines the start, end and padding tokens of a text, by one rule for every tokenizer.

1. The files next to the tokenizer; the first that names a token wins: tokenizer_config.json and
   special_tokens_map.json by token (cls_token or bos_token, sep_token or eos_token, pad_token),
   generation_config.json and config.json by id. Chat templates are ignored.
2. Otherwise the usual names, see `START`, `END` and `PAD`.
3. Otherwise an encoder has no start token. A decoder starts with the end token, which GPT-like
   models use to separate documents, or with padding if the tokenizer is not byte-level (T5). The
   end token is also used for padding, as padding is never attended to and never predicted.

A byte-level tokenizer whose only special token is <|endoftext|>, such as GPT-2's, gets the three
tokens that Optimus adds, in the same order: <PAD>, <BOS>, <EOS>. It does not if its files name both
an end and a padding token, or if the model's token embedding is frozen: the new rows would remain
equal to each other, so the end of a text could never be likelier than 1/3.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer

from jvae.data import tokenizer_files

START = ("[CLS]", "<s>", "<BOS>", "<bos>", "<|begin_of_text|>", "<|startoftext|>")
END = ("[SEP]", "</s>", "<EOS>", "<eos>", "<|end_of_text|>", "<|endoftext|>")
PAD = ("[PAD]", "<pad>", "<PAD>", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>")
UNK = ("[UNK]", "<unk>")
GPT2, OF_GPT2 = "<|endoftext|>", ("<PAD>", "<BOS>", "<EOS>")
CONFIG = "tokenizer_config.json"
_BY_TOKEN = (CONFIG, "special_tokens_map.json")
_BY_ID = ("generation_config.json", "config.json")
FILES = (*_BY_TOKEN, *_BY_ID)  # files that may name a tokenizer's special tokens
# Role: keys in those files; the first one present wins.
_KEYS = {
    "start": ("cls_token", "bos_token"),
    "end": ("sep_token", "eos_token"),
    "pad": ("pad_token",),
}


class Special(NamedTuple):
    """The special tokens of a tokenizer; None for a role without a token.

    space: whether a space is added before a text, so that its first word has the id it has
      elsewhere.
    stated: whether files next to the tokenizer name these tokens.
    """

    start: str | None
    end: str | None
    pad: str | None
    space: bool
    stated: bool = False

    def as_config(self) -> dict[str, object]:
        """The same in the form of tokenizer_config.json."""
        tokens = {"bos_token": self.start, "eos_token": self.end, "pad_token": self.pad}
        return {
            **{key: token for key, token in tokens.items() if token is not None},
            "add_prefix_space": self.space,
            "clean_up_tokenization_spaces": False,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }


def stated(folder: Path, backend: Tokenizer) -> Special | None:
    """The special tokens that a folder's files name; None without such files.

    Raises: DataError for a file that cannot be read.
    """
    by_token = _read(folder, _BY_TOKEN)
    by_id = _read(folder, _BY_ID)
    if not by_token and not by_id:
        return None

    special = {i: t.content for i, t in backend.get_added_tokens_decoder().items() if t.special}

    def token(name: str) -> str | None:
        for tree in by_token:
            for key in _KEYS[name]:
                value = tree.get(key)
                text = value.get("content") if isinstance(value, Mapping) else value
                if isinstance(text, str) and backend.token_to_id(text) is not None:
                    return text
        for tree in by_id:
            for key in _KEYS[name]:
                ids = tree.get(f"{key}_id")
                for number in ids if isinstance(ids, list) else [ids]:
                    if (
                        isinstance(number, int)
                        and not isinstance(number, bool)
                        and number in special
                    ):
                        return special[number]
        return None

    space = any(tree.get("add_prefix_space") is True for tree in by_token)
    return Special(token("start"), token("end"), token("pad"), space, bool(by_token))


def complete(backend: Tokenizer, said: Special | None, add: bool = True) -> Special:
    """The special tokens of a tokenizer by the rule above; adds GPT-2's three if applicable.

    Args:
      said: see `stated`.
      add: whether tokens may be added.
    """
    byte_level = cuts_bytes(backend)

    def first(names: Sequence[str]) -> str | None:
        return next((name for name in names if backend.token_to_id(name) is not None), None)

    only = byte_level and first((GPT2,)) is not None and first(END) == GPT2
    alone = only and not _others(backend)
    settled = said is not None and said.stated and bool(said.end and said.pad)
    if alone and add and not settled:
        backend.add_special_tokens(added(OF_GPT2))
        said, alone = None, False
    named = _padded(Special(first(START), first(END), first(PAD), byte_level))
    if said is None:
        return named._replace(stated=alone)
    adds_space = '"add_prefix_space": true' in _pre_tokenizer(backend)
    space = byte_level and (said.space or adds_space or not said.stated)
    start, end = said.start or named.start, said.end or named.end
    result = _padded(Special(start, end, said.pad or first(PAD), space, True))
    # No file is needed if the token names alone give the same result when it is loaded again.
    return named if result == named._replace(stated=True) and not alone else result


def added(names: Sequence[str]) -> list[str | AddedToken]:
    """Special tokens for `Tokenizer.add_special_tokens`."""
    return [AddedToken(name, special=True, normalized=False) for name in names]


def cuts_bytes(backend: Tokenizer) -> bool:
    """Whether a tokenizer is byte-level, as GPT-2's is."""
    return '"ByteLevel"' in _pre_tokenizer(backend)


def _pre_tokenizer(backend: Tokenizer) -> str:
    """The JSON of the pre-tokenizer alone, without the vocabulary."""
    part = backend.pre_tokenizer
    return "" if part is None else json.dumps(json.loads(part.__getstate__()))


def _padded(special: Special) -> Special:
    return special if special.pad else special._replace(pad=special.end)


def _others(backend: Tokenizer) -> bool:
    """Whether there are special tokens other than GPT-2's."""
    added = backend.get_added_tokens_decoder().values()
    return any(token.special and token.content != GPT2 for token in added)


def _read(folder: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    return [tokenizer_files.read(folder / name) for name in names if (folder / name).is_file()]
