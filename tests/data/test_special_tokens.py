"""Which tokens begin, end and pad a text, of tokenizers as people bring them."""

import json

import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

from jvae.data import tokenizers
from jvae.errors import DataError

LETTERS = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
HARD = ["a  b", " café 漢字 🙂", "don't", "x <name> y"]


def of_bytes(folder, special=(), added=(), **files):
    """A byte-level tokenizer with added tokens, and files next to it."""
    backend = Tokenizer(models.BPE(vocab=LETTERS, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in special])
    backend.add_tokens(list(added))
    return written(folder, backend, files)


def written(folder, backend, files):
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    for name, tree in files.items():
        (folder / f"{name}.json").write_text(json.dumps(tree))
    return folder


def tokens(tokenizer):
    ids = (tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id)
    return tuple(None if i is None else tokenizer.backend.id_to_token(i) for i in ids)


END = "<|endoftext|>"


@pytest.mark.parametrize(
    "special, files, expected, prefix",
    [
        ([END], {}, ("<BOS>", "<EOS>", "<PAD>"), " "),  # GPT-2
        ([END], dict(tokenizer_config={"bos_token": END}), ("<BOS>", "<EOS>", "<PAD>"), " "),
        ([END, "[PAD]"], {}, (END, END, "[PAD]"), " "),
        ([END, "<pad>"], {}, (END, END, "<pad>"), " "),
        ([END, "<|pad|>"], {}, (END, END, "<|pad|>"), " "),
        ([END, "<s>"], {}, ("<s>", END, END), " "),
        ([END, "[CLS]"], {}, ("[CLS]", END, END), " "),
        (  # SmolLM2
            [END, "<|im_start|>", "<|im_end|>"],
            dict(
                tokenizer_config={
                    "bos_token": "<|im_start|>",
                    "eos_token": {"content": "<|im_end|>", "lstrip": False},
                    "pad_token": "<|im_end|>",
                    "add_prefix_space": False,
                    "chat_template": "{{ bos_token }}",
                }
            ),
            ("<|im_start|>", "<|im_end|>", "<|im_end|>"),
            "",
        ),
        (  # Llama 3 says it by token, of which one is left out, and by id
            ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],
            dict(
                tokenizer_config={"bos_token": "<|begin_of_text|>", "pad_token": None},
                generation_config={"bos_token_id": 256, "eos_token_id": [258, 257]},
            ),
            ("<|begin_of_text|>", "<|eot_id|>", "<|eot_id|>"),
            "",
        ),
        (  # Qwen 2
            [END, "<|im_start|>", "<|im_end|>"],
            dict(
                tokenizer_config={"bos_token": None, "eos_token": END, "pad_token": END},
                config={"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": -1},
            ),
            (END, END, END),
            "",
        ),
        (["<s>", "<pad>", "</s>"], {}, ("<s>", "</s>", "<pad>"), " "),  # RoBERTa, bare
        (
            ["<s>", "<pad>", "</s>"],
            dict(special_tokens_map={"cls_token": "<s>", "pad_token": "<not there>"}),
            ("<s>", "</s>", "<pad>"),
            "",
        ),
        (
            ["<s>", "<pad>", "</s>"],
            dict(tokenizer_config={"add_prefix_space": True}),
            ("<s>", "</s>", "<pad>"),
            " ",
        ),
    ],
)
def test_of_a_byte_level_tokenizer(tmp_path, special, files, expected, prefix):
    folder = of_bytes(tmp_path / "own", special, ["<name>"], **files)
    decoder = tokenizers.load(folder, "decoder")
    assert tokens(decoder) == expected and decoder.prefix == prefix
    rows = 256 + len(special) + 1
    assert decoder.vocab_size == rows + 3 * (expected[0] == "<BOS>")
    assert decoder.unk_id is None
    for text, ids in zip(HARD, decoder.encode_batch(HARD), strict=True):
        assert ids[0] == decoder.start_id and ids[-1] == decoder.end_id
        assert decoder.decode(ids) == text and decoder.decode([*ids, decoder.pad_id]) == text
    assert decoder.decode([decoder.end_id, decoder.pad_id]) == ""  # generated: ends at once
    # A run keeps the same, whatever else is not there.
    decoder.save(tmp_path / "run")
    for role in ("encoder", "decoder"):
        again, there = tokenizers.load(tmp_path / "run", role), tokenizers.load(folder, role)
        assert again.fingerprint == there.fingerprint == decoder.for_role(role).fingerprint
        assert tokens(again) == tokens(there) == tokens(decoder.for_role(role))
        assert again.prefix == there.prefix


@pytest.mark.parametrize(
    "files, add, start",
    [
        ({}, False, None),
        (dict(config={"bos_token_id": 256, "eos_token_id": 256}), False, END),
        (dict(tokenizer_config={"eos_token": END, "pad_token": END}), True, None),
    ],
)
def test_nothing_is_added_to_gpt2_around_frozen_rows_or_if_its_files_settle_it(
    tmp_path, files, add, start
):
    folder = of_bytes(tmp_path / "own", [END], **files)
    tokenizer = tokenizers.load(folder, "encoder", add=add)
    assert tokens(tokenizer) == (start, END, END) and tokenizer.vocab_size == 257
    assert tokens(tokenizer.for_role("decoder")) == (END, END, END)
    tokenizer.save(tmp_path / "run")
    again = tokenizers.load(tmp_path / "run", "encoder")
    assert tokens(again) == tokens(tokenizer) and again.fingerprint == tokenizer.fingerprint


def test_conventions_are_part_of_what_makes_a_tokenizer(tmp_path):
    special = [END, "<|im_start|>", "<|im_end|>"]
    bare = tokenizers.load(of_bytes(tmp_path / "bare", special), "decoder")
    stated = dict(tokenizer_config={"bos_token": "<|im_start|>", "add_prefix_space": False})
    tokenizer = tokenizers.load(of_bytes(tmp_path / "own", special, **stated), "decoder")
    assert (
        bare.vocabulary_sha256 == tokenizer.vocabulary_sha256
        and bare.fingerprint != tokenizer.fingerprint
    )
    # What the tokens alone say needs no second file.
    bare.save(tmp_path / "saved")
    assert [path.name for path in (tmp_path / "saved").iterdir()] == ["tokenizer.json"]
    assert tokenizer.described() == f"<|im_start|> begins a text, {END} ends it"


def llama2(folder):
    """SentencePiece with byte fallback, as Llama 2 has it."""
    entries = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *"abcdnotxy'"]
    vocab = {entry: i for i, entry in enumerate(entries)}
    backend = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    prepend = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence(prepend)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens([AddedToken(entry, special=True) for entry in entries[:3]])
    config = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": None, "add_bos_token": True}
    return written(folder, backend, dict(tokenizer_config=config))


def test_sentencepiece_with_byte_fallback(tmp_path):
    tokenizer = tokenizers.load(llama2(tmp_path), "decoder")
    assert tokens(tokenizer) == ("<s>", "</s>", "</s>") and tokenizer.prefix == ""
    assert tokenizer.unk_id is None  # unknown letters are bytes
    assert tokenizer.vocab_size == 259 + 11
    texts = ["a b", "café 漢字 🙂", "don't"]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts


def test_files_that_cannot_be_read(tmp_path):
    folder = of_bytes(tmp_path, ["<s>", "</s>"])
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer_config.json: the tokenizer file cannot be"):
        tokenizers.load(folder, "decoder")
    odd = {"bos_token": 7, "eos_token": ["x"], "pad_token": {"content": 3}}
    (folder / "tokenizer_config.json").write_text(json.dumps(odd))
    ids = {"bos_token_id": True, "eos_token_id": "x", "pad_token_id": 1e9}
    (folder / "config.json").write_text(json.dumps(ids))
    assert tokens(tokenizers.load(folder, "decoder")) == ("<s>", "</s>", "</s>")
