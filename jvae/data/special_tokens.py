"""Which tokens begin, end and pad a text: one rule for every tokenizer.

1. What the files beside the tokenizer say, the first that does: tokenizer_config.json and
   special_tokens_map.json by token (cls_token or bos_token, sep_token or eos_token, pad_token),
   generation_config.json and config.json by id. Chat templates are left aside.
2. Else the usual names, see `START`, `END` and `PAD`.
3. Else nothing begins what an encoder reads. A decoder begins with the end token, by which GPT and
   its kin part documents, or with padding where text is not cut into bytes (T5). The end token
   pads: padded places are never read and never predicted.

A byte-level tokenizer whose one special token is <|endoftext|>, as GPT-2's, gets the three that
Optimus adds, in its order: <PAD>, <BOS>, <EOS>.
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
FILES = (*_BY_TOKEN, *_BY_ID)  # that may name a tokenizer's special tokens
# Ours: keys of those files, the first that says something.
_KEYS = {
    "start": ("cls_token", "bos_token"),
    "end": ("sep_token", "eos_token"),
    "pad": ("pad_token",),
}


class Special(NamedTuple):
    """The special tokens of a tokenizer, None where it has none for that.

    space: whether a text gets a blank in front, so that its first word has the id it has elsewhere.
    stated: whether files beside the tokenizer say so, not its tokens alone.
    """

    start: str | None
    end: str | None
    pad: str | None
    space: bool
    stated: bool = False

    def as_config(self) -> dict[str, Any]:
        """The same as tokenizer_config.json has it."""
        tokens = {"bos_token": self.start, "eos_token": self.end, "pad_token": self.pad}
        return {
            **{key: token for key, token in tokens.items() if token is not None},
            "add_prefix_space": self.space,
            "clean_up_tokenization_spaces": False,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }


def stated(folder: Path, backend: Tokenizer) -> Special | None:
    """What the files of a folder say of its tokenizer; None where there are none.

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
                for one in ids if isinstance(ids, list) else [ids]:
                    if isinstance(one, int) and not isinstance(one, bool) and one in special:
                        return special[one]
        return None

    space = any(tree.get("add_prefix_space") is True for tree in by_token)
    return Special(token("start"), token("end"), token("pad"), space, bool(by_token))


def complete(backend: Tokenizer, said: Special | None) -> Special:
    """The special tokens of a tokenizer by the rule; GPT-2's three are added to it where due.

    Args:
      said: see `stated`.
    """
    byte_level = cuts_bytes(backend)

    def first(names: Sequence[str]) -> str | None:
        return next((name for name in names if backend.token_to_id(name) is not None), None)

    only = byte_level and first((GPT2,)) is not None and first(END) == GPT2
    if only and not _others(backend):
        backend.add_special_tokens(
            [AddedToken(name, special=True, normalized=False) for name in OF_GPT2]
        )
        said = None
    named = _padded(Special(first(START), first(END), first(PAD), byte_level))
    if said is None:
        return named
    adds_space = '"add_prefix_space": true' in _pre_tokenizer(backend)
    space = byte_level and (said.space or adds_space or not said.stated)
    start, end = said.start or named.start, said.end or named.end
    own = _padded(Special(start, end, said.pad or first(PAD), space, True))
    # What the names alone say too needs no file.
    return named if own == named._replace(stated=True) else own


def cuts_bytes(backend: Tokenizer) -> bool:
    """Whether a tokenizer cuts bytes and not letters, as GPT-2's."""
    return '"ByteLevel"' in _pre_tokenizer(backend)


def _pre_tokenizer(backend: Tokenizer) -> str:
    """Its JSON, without that of the vocabulary."""
    part = backend.pre_tokenizer
    return "" if part is None else json.dumps(json.loads(part.__getstate__()))


def _padded(special: Special) -> Special:
    return special if special.pad else special._replace(pad=special.end)


def _others(backend: Tokenizer) -> bool:
    """Whether there are special tokens besides GPT-2's."""
    added = backend.get_added_tokens_decoder().values()
    return any(token.special and token.content != GPT2 for token in added)


def _read(folder: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    return [tokenizer_files.read(folder / name) for name in names if (folder / name).is_file()]
