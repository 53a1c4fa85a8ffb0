"""Ids, special tokens and round trips: small tokenizers and, where present, real vocabularies."""

import json
import os
import shutil
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from jvae import hub
from jvae.data import tokenizers
from jvae.data.sources import lines_of
from jvae.data.tokenizers import load, open_tokenizer, train_bpe, train_word_level
from jvae.errors import ConfigError, DataError

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the hub package is first imported

REAL = Path(__file__).parents[3] / "shared/tokenizers"
TEXTS = ["a man plays a guitar", "two dogs run", "a dog runs"]
HARD = [
    'the <unk> n.v. said N of it ca n\'t " quote " $ 1.5',
    "Ünïcode — “quotes” 日本 emoji 🎸",
    "it 's do not don't I 'm",
    "a",
]


@pytest.fixture(params=["gpt2", "bert-base-cased", "bert-base-uncased", "t5-base"])
def real(request):
    if not (REAL / request.param).is_dir():
        pytest.skip(f"needs the vocabulary of {request.param}")
    return REAL / request.param


def real_one(name, role):
    if not (REAL / name).is_dir():
        pytest.skip(f"needs the vocabulary of {name}")
    return open_tokenizer(REAL / name, role)


def test_word_level_ids_and_round_trip():
    tok = train_word_level(TEXTS)
    assert (tok.pad_id, tok.start_id, tok.end_id, tok.unk_id) == (0, 1, 2, 3)
    assert tok.vocab_size == 4 + 9
    ids = tok.encode_batch(["a man", "zebra  a"])
    assert [token_ids.tolist() for token_ids in ids] == [
        [1, 4, tok.backend.token_to_id("man"), 2],
        [1, 3, 4, 2],
    ]
    assert ids[0].dtype == np.int32
    assert [tok.decode(ids) for ids in tok.encode_batch(TEXTS)] == TEXTS
    assert tok.decode([1, 4, 2, 4, 0, 0]) == "a"
    assert tok.decode([1, 2]) == "" == tok.decode([])


def test_word_level_order_does_not_depend_on_the_order_of_texts():
    assert train_word_level(TEXTS).fingerprint == train_word_level(TEXTS[::-1]).fingerprint
    assert train_word_level(TEXTS).fingerprint != train_word_level(TEXTS[1:]).fingerprint


def test_word_level_limits():
    assert train_word_level(TEXTS, vocab_size=6).vocab_size == 6
    assert train_word_level(TEXTS, min_count=2).vocab_size == 5
    with pytest.raises(ConfigError, match="a vocabulary of 4 leaves no room for words"):
        train_word_level(TEXTS, vocab_size=4)
    with pytest.raises(DataError, match="no words to train a tokenizer on"):
        train_word_level([])


def test_word_that_spells_a_special_token_gets_no_second_id():
    tok = train_word_level(["the <unk> said </s>"] * 3)
    assert tok.encode_batch(["the <unk>"])[0].tolist()[2] == 3 == tok.unk_id
    assert tok.backend.token_to_id("</s>") == 2
    assert tok.vocab_size == 6


def test_bpe_is_lossless_and_repeatable():
    tok = train_bpe(TEXTS * 5, vocab_size=300)
    assert tok.fingerprint == train_bpe(TEXTS * 5, vocab_size=300).fingerprint
    assert [tok.decode(ids) for ids in tok.encode_batch(HARD)] == HARD
    assert tok.unk_id is None and tok.start_id == 1
    with pytest.raises(ConfigError, match="a vocabulary of 100 is too small"):
        train_bpe(TEXTS, vocab_size=100)


def test_bpe_is_trained_on_pieces_of_bounded_length(monkeypatch):
    """Merging costs the square of a piece's length, so the longest one is what counts."""
    pieces = []

    class Counting:  # the backend's class cannot be derived from
        from_str = staticmethod(Tokenizer.from_str)

        def __init__(self, model):
            self.__dict__["real"] = Tokenizer(model)

        def __getattr__(self, name):
            return getattr(self.real, name)

        def __setattr__(self, name, value):
            setattr(self.real, name, value)

        def train_from_iterator(self, iterator, trainer):
            texts = list(iterator)
            for text in texts:
                pieces.extend(piece for piece, _ in self.real.pre_tokenizer.pre_tokenize_str(text))
            self.real.train_from_iterator(texts, trainer)

    monkeypatch.setattr(tokenizers, "Tokenizer", Counting)
    text = "\u6f22" * 1_000 + " " * 500 + "." * 700 + " end"
    built = train_bpe([text, "a b"], 300)
    assert max(map(len, pieces)) == tokenizers.LONGEST_WORD
    assert sum(map(len, pieces)) == 3_000 + 500 + 700 + len("  end a b")
    assert built.decode(built.encode_batch([text])[0]) == text
    assert len(built.backend.pre_tokenizer.pre_tokenize_str("x" * 500)) == 1  # encoding is whole


@pytest.mark.parametrize("train", [train_word_level, train_bpe])
def test_saved_tokenizer_is_whole(tmp_path, train):
    tok = train(TEXTS)
    tok.save(tmp_path / "run" / "enc")
    again = load(tmp_path / "run" / "enc", "encoder")
    assert [p.name for p in (tmp_path / "run" / "enc").iterdir()] == ["tokenizer.json"]
    assert again.fingerprint == tok.fingerprint == tok.for_role("encoder").fingerprint
    assert again.vocab_size == tok.vocab_size
    for a, b in zip(tok.encode_batch(HARD), again.encode_batch(HARD), strict=True):
        assert a.tolist() == b.tolist()


def gpt2_like(folder):
    """A GPT-2 vocabulary in small: bytes, one merge, the end-of-text token last."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab |= {"Ġa": 256, "<|endoftext|>": 257}
    backend = Tokenizer(models.BPE(vocab, [("Ġ", "a")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.model.save(str(folder))
    backend.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    return backend


def test_gpt2_convention(tmp_path):
    gpt2_like(tmp_path)
    tok = load(tmp_path, "decoder")
    assert (tok.pad_id, tok.start_id, tok.end_id) == (258, 259, 260)
    assert tok.vocab_size == 261
    assert tok.encode_batch(["a"])[0].tolist() == [259, 256, 260]
    assert tok.decode([259, 256, 256, 260, 256]) == "a a"
    tok.save(tmp_path / "again")
    assert load(tmp_path / "again", "encoder").end_id == 260


def word_pieces_like(folder):
    """A BERT vocabulary in small, without a tokenizer.json."""
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abmn", "##n"]
    (folder / "vocab.txt").write_text("\n".join(entries) + "\n")


ROLES = {"bos_token": "<BOS>", "eos_token": {"content": "<EOS>"}, "pad_token": "<PAD>"}


def listed(folder, first, config):
    """Writes files of `transformers` 4 that list added tokens, from an id on; returns these ids."""
    tokens = {"<BOS>": first, "<EOS>": first + 1, "<PAD>": first + 2, "<name>": first + 3}
    if config:  # newer files; their order is not that of the ids
        entries = {str(i): {"content": t, "special": t in str(ROLES)} for t, i in tokens.items()}
        tree = ROLES | {"added_tokens_decoder": dict(reversed(entries.items()))}
        (folder / "tokenizer_config.json").write_text(json.dumps(tree))
    else:
        (folder / "added_tokens.json").write_text(json.dumps(dict(reversed(tokens.items()))))
        (folder / "special_tokens_map.json").write_text(json.dumps(ROLES))
    return tokens


@pytest.mark.parametrize("config", [False, True])
@pytest.mark.parametrize("write, first", [(gpt2_like, 258), (word_pieces_like, 10)])
def test_added_tokens_have_the_ids_that_the_files_state(tmp_path, write, first, config):
    write(tmp_path)
    ids = listed(tmp_path, first, config)
    tok = load(tmp_path, "decoder")
    assert (tok.start_id, tok.end_id, tok.pad_id) == (first, first + 1, first + 2)
    assert tok.vocab_size == first + 4
    assert ids["<name>"] in tok.encode_batch(["a <name> a"])[0]
    special = [t.content for t in tok.backend.get_added_tokens_decoder().values() if t.special]
    assert {"<BOS>", "<EOS>", "<PAD>"} <= {*special} and "<name>" not in special
    listed(tmp_path, first + 1, config)
    with pytest.raises(DataError, match=f"'<BOS>' has id {first + 1}, but .* give it {first};"):
        load(tmp_path, "decoder")


@pytest.mark.parametrize(
    "write, file, tree, loads",
    [
        (word_pieces_like, "tokenizer_config", {"tokenizer_class": "BertTokenizerFast"}, True),
        (word_pieces_like, "tokenizer_config", {"tokenizer_class": "BertJapaneseTokenizer"}, False),
        (word_pieces_like, "tokenizer_config", {"word_tokenizer_type": "mecab"}, False),
        (word_pieces_like, "config", {"tokenizer_class": "BertJapaneseTokenizer"}, False),
        (gpt2_like, "tokenizer_config", {"tokenizer_class": "RobertaTokenizer"}, True),
        (gpt2_like, "tokenizer_config", {"tokenizer_class": None}, True),
        (gpt2_like, "tokenizer_config", {"tokenizer_class": "Qwen2Tokenizer"}, False),
        (gpt2_like, "config", {"tokenizer_class": "CLIPTokenizer"}, False),
    ],
)
def test_a_vocabulary_of_another_class_of_tokenizer(tmp_path, write, file, tree, loads):
    write(tmp_path)
    (tmp_path / f"{file}.json").write_text(json.dumps(tree))
    if loads:
        assert load(tmp_path, "decoder").vocab_size
    else:
        with pytest.raises(DataError, match=r"\(.*\) splits text .*; provide a tokenizer.json"):
            load(tmp_path, "decoder")


def test_added_tokens_are_fetched_from_the_hub(tmp_path, monkeypatch):
    gpt2_like(tmp_path)
    fetched = []

    def file(name, path, *_):
        fetched.append(path)
        return tmp_path / path if (tmp_path / path).is_file() else None

    monkeypatch.setattr(hub, "file", file)
    open_tokenizer("own/tok", "decoder")
    assert "added_tokens.json" in fetched


def test_unusable_tokenizers(tmp_path):
    with pytest.raises(
        DataError, match="missing: no such folder; expected one with tokenizer.json"
    ):
        open_tokenizer("./missing", "decoder")
    with pytest.raises(DataError, match="no such folder; expected the folder"):
        load(tmp_path / "missing", "decoder")
    with pytest.raises(DataError, match="no tokenizer files; expected tokenizer.json"):
        open_tokenizer(tmp_path, "decoder")
    (tmp_path / "tokenizer.json").write_text("{broken")
    with pytest.raises(DataError, match="the tokenizer file cannot be read .*copy it again"):
        open_tokenizer(tmp_path, "decoder")
    with pytest.raises(DataError, match="is a file; expected the folder"):
        open_tokenizer(tmp_path / "tokenizer.json", "decoder")
    backend = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match=r"has no \[SEP\] or </s> or <EOS>; expected one like"):
        open_tokenizer(tmp_path, "decoder")
    with pytest.raises(ValueError, match="role 'reader'"):
        train_word_level(TEXTS, role="reader")


def test_gpt2_ids():
    tok = real_one("gpt2", "decoder")
    assert (tok.pad_id, tok.start_id, tok.end_id, tok.vocab_size) == (50257, 50258, 50259, 50260)
    assert tok.encode_batch(["a man"])[0].tolist() == [50258, 257, 582, 50259]
    assert len(tok.encode_batch(["<unk>"])[0]) == 2 + 3
    assert [tok.decode(ids) for ids in tok.encode_batch(HARD)] == HARD


def test_bert_ids(tmp_path):
    tok = real_one("bert-base-cased", "encoder")
    assert (tok.pad_id, tok.start_id, tok.end_id, tok.vocab_size) == (0, 101, 102, 28_996)
    assert tok.encode_batch(["a man"])[0].tolist() == [101, 170, 1299, 102]
    assert len(tok.encode_batch(["<unk>"])[0]) == 2 + 4
    assert tok.decode(tok.encode_batch(["they do not run ."])[0]) == "they do not run ."
    # vocab.txt alone: the case is read off the vocabulary.
    shutil.copy(REAL / "bert-base-cased" / "vocab.txt", tmp_path)
    alone = load(tmp_path, "encoder")
    for a, b in zip(tok.encode_batch(HARD), alone.encode_batch(HARD), strict=True):
        assert a.tolist() == b.tolist()


def test_t5_ids():
    tok = real_one("t5-base", "decoder")
    body = [71, 388, 19, 1556, 5507, 5]
    assert tok.encode_batch(["A man is playing guitar."])[0].tolist() == [0, *body, 1]
    encoder = tok.for_role("encoder")
    assert encoder.encode_batch(["A man is playing guitar."])[0].tolist() == [*body, 1]
    assert encoder.start_id is None
    assert tok.decode([0, *body, 1, 0, 0]) == "A man is playing guitar."


@pytest.mark.filterwarnings("default")  # the reference library's own warnings are not ours
def test_same_ids_as_transformers(real):
    import transformers

    # By class, as a folder of vocabulary files alone does not let AutoTokenizer infer the class.
    name = {"g": "GPT2Tokenizer", "b": "BertTokenizer", "t": "T5Tokenizer"}[real.name[0]]
    theirs = getattr(transformers, name).from_pretrained(str(real))
    ours = open_tokenizer(real, "encoder")
    prefix = " " if real.name == "gpt2" else ""
    start = [] if ours.start_id is None else [ours.start_id]
    for text, ids in zip(HARD, ours.encode_batch(HARD), strict=True):
        expected = theirs(prefix + text, add_special_tokens=False)["input_ids"]
        assert ids.tolist() == [*start, *expected, ours.end_id]


def test_a_hub_that_cannot_be_reached_is_known_at_once(tmp_path, monkeypatch):
    """One question to the hub, none where it is switched off; the cache serves all the same."""
    asked = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    real = hub._answers.__wrapped__
    monkeypatch.setattr(hub, "_answers", lru_cache(lambda at: asked.append(at) or real(at)))
    with pytest.raises(DataError, match="^own/tok: no folder here, not in the .* not reachable"):
        open_tokenizer("own/tok", "decoder")
    assert asked == ["http://127.0.0.1:9"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked.clear()
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set"):
        open_tokenizer("own/tok", "decoder")
    repo, commit = tmp_path / "models--own--tok", "0" * 40
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text(commit)
    train_bpe(TEXTS, vocab_size=300).save(repo / "snapshots" / commit)
    tokenizer = open_tokenizer("own/tok", "decoder")
    assert tokenizer.name == "own/tok" and tokenizer.vocab_size <= 300 and not asked
    with pytest.raises(DataError, match="not a name!"):
        open_tokenizer("not a name!", "decoder")


def test_embedded_texts_round_trip():
    lines = lines_of(TEXTS, "embedded")
    tok = train_word_level(lines.text)
    assert [tok.decode(ids) for ids in tok.encode_batch(lines.text)] == list(lines.text)
