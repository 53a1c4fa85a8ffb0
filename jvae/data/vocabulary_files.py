"""Builds tokenizers from the vocabulary files of `transformers`, without a tokenizer.json.

vocab.json with merges.txt is read as GPT-2's byte-level BPE, vocab.txt as BERT's WordPiece. Tokens
that were added later are in added_tokens.json or tokenizer_config.json. Other tokenizers also use
these file names, so a stated class must be one that splits text in the same way.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from jvae.data import special_tokens, tokenizer_files
from jvae.errors import DataError

ADDED = "added_tokens.json"
# Tokenizer classes that split text like GPT-2's and like BERT's, without "Tokenizer" or "Fast".
_LIKE_GPT2 = ("GPT2", "Roberta", "Bart", "OPT", "Longformer", "LED", "Mvp", "CodeGen")
_LIKE_BERT = (
    *("Bert", "DistilBert", "Electra", "MobileBert", "SqueezeBert", "ConvBert", "LayoutLM"),
    *("DPRContextEncoder", "DPRQuestionEncoder"),
)
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def byte_bpe(folder: Path) -> Tokenizer:
    """Makes a GPT-2 tokenizer from `vocab.json` and `merges.txt`.

    Raises: DataError for invalid ids or a tokenizer of another class.
    """
    _check_class(folder, _LIKE_GPT2)
    tokenizer_files.checked_vocabulary(folder / "vocab.json")
    model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    _add_tokens(backend, folder, ("<|endoftext|>", "<s>", "</s>", "<pad>", "<unk>", "<mask>"))
    return backend


def word_pieces(folder: Path) -> Tokenizer:
    """Makes a BERT tokenizer from `vocab.txt`.

    Deviation: without a config, casing is inferred from the vocabulary; the reference lower-cases.

    Raises: DataError for invalid ids or a tokenizer of another class.
    """
    _check_class(folder, _LIKE_BERT)
    backend = Tokenizer(models.WordPiece.from_file(str(folder / "vocab.txt"), unk_token="[UNK]"))
    cased = any(w != w.lower() for w in backend.get_vocab() if not w.startswith("["))
    options = _read(folder / special_tokens.CONFIG)
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=options.get("do_lower_case", not cased),
        strip_accents=options.get("strip_accents"),
        handle_chinese_chars=options.get("tokenize_chinese_chars", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    _add_tokens(backend, folder, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"))
    return backend


def _check_class(folder: Path, supported: tuple[str, ...]) -> None:
    """Raises: DataError if the files name a class that splits text in another way."""
    options = _read(folder / special_tokens.CONFIG)
    name = options.get("tokenizer_class") or _read(folder / "config.json").get("tokenizer_class")
    same = not name or str(name).removesuffix("Fast").removesuffix("Tokenizer") in supported
    if not same or options.get("word_tokenizer_type"):
        raise DataError(
            f"{folder}: its tokenizer ({name or options['word_tokenizer_type']}) splits text in a "
            "way that the vocabulary alone does not determine; provide a tokenizer.json"
        )


def _add_tokens(backend: Tokenizer, folder: Path, usual: tuple[str, ...]) -> None:
    """Marks the usual special tokens of a vocabulary and adds the tokens that the files list.

    Raises: DataError if a listed token would get another id.
    """
    backend.add_special_tokens(
        special_tokens.added([s for s in usual if backend.token_to_id(s) is not None])
    )
    marked = {token.content for token in backend.get_added_tokens_decoder().values()}
    listed = sorted(_listed(folder), key=lambda entry: entry[0])
    new: dict[str, AddedToken] = {}
    for _, token, _ in listed:
        if token.content not in marked:
            new.setdefault(token.content, token)
    backend.add_tokens(list(new.values()))
    for number, token, file in listed:
        if (got := backend.token_to_id(token.content)) != number:
            raise DataError(
                f"{folder / file}: {token.content!r} has id {number}, but the vocabulary and the "
                f"tokens before it give it {got}; copy the folder again"
            )


def _listed(folder: Path) -> list[tuple[int, AddedToken, str]]:
    """Id, token and file of each added token. tokenizer_config.json, which has flags, is first."""
    options = _read(folder / special_tokens.CONFIG)
    listed = [
        (
            int(number),
            AddedToken(entry["content"], **{flag: entry[flag] for flag in _FLAGS if flag in entry}),
            special_tokens.CONFIG,
        )
        for number, entry in (options.get("added_tokens_decoder") or {}).items()
    ]
    if (folder / ADDED).is_file():
        special = _special_names(options) | _special_names(
            _read(folder / "special_tokens_map.json")
        )
        for token, number in tokenizer_files.checked_vocabulary(folder / ADDED).items():
            named = token in special
            listed.append((number, AddedToken(token, special=named, normalized=not named), ADDED))
    return listed


def _special_names(tree: Mapping[str, Any]) -> set[str]:
    """The tokens that a file gives a role, or names as additional special tokens."""
    values = [value for key, value in tree.items() if key.endswith("_token")]
    values += tree.get("additional_special_tokens") or []
    contents = [value.get("content") if isinstance(value, Mapping) else value for value in values]
    return {content for content in contents if isinstance(content, str)}


def _read(path: Path) -> dict[str, Any]:
    return tokenizer_files.read(path) if path.is_file() else {}
