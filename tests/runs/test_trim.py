"""A pretrained decoder keeps the tokens of one text, and reads that text as before."""

import json

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models

import jvae
from jvae.cli import main
from jvae.data import grammar, tokenizers
from jvae.data.trim import trim as trim_tokenizer
from jvae.errors import DataError, WeightsError
from jvae.pretrained import files
from jvae.runs import trim

TEXTS = tuple(sentence.text for sentence in grammar.corpus("train", 300))
OTHER = "Ünlike äny ¿sentence? of 12,345 wörds\tand tabs"
CONFIG = dict(
    model_type="llama",
    hidden_size=8,
    intermediate_size=12,
    num_attention_heads=2,
    num_key_value_heads=1,
    num_hidden_layers=1,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    vocab_size=700,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A decoder whose tokenizer was trained on more than `TEXTS`."""
    path = tmp_path_factory.mktemp("decoder")
    more = [sentence.text.title() for sentence in grammar.corpus("valid", 300)]
    tokenizers.train_bpe([*TEXTS, *more], 700).save(path, config=True)
    (path / files.CONFIG).write_text(json.dumps(CONFIG))
    rows = np.arange(700.0, dtype=np.float32)[:, None]
    arrays = {"model.embed_tokens.weight": rows, "lm_head.weight": -rows}
    arrays["model.norm.weight"] = np.ones(8, np.float32)
    files.write_safetensors(path / files.SAFETENSORS, arrays, {})
    return path


def test_the_text_has_the_same_tokens_and_rows(folder, tmp_path):
    sizes = jvae.trim(folder, tmp_path / "out", iter(TEXTS))
    whole, small = (tokenizers.load(path, "decoder") for path in (folder, tmp_path / "out"))
    tensors = files.open_checkpoint(tmp_path / "out").tensors
    table = np.asarray(tensors["model.embed_tokens.weight"])[:, 0]

    assert sizes == (whole.vocab_size, small.vocab_size) == (700, len(table))
    assert 260 < len(table) < 700
    for ids, new in zip(whole.encode_batch(TEXTS), small.encode_batch(TEXTS), strict=True):
        np.testing.assert_array_equal(ids, table[new])
    np.testing.assert_array_equal(np.asarray(tensors["lm_head.weight"])[:, 0], -table)
    assert tensors["model.norm.weight"].shape == (8,)
    assert small.special == whole.special


def test_any_other_text_can_still_be_written(folder, tmp_path):
    jvae.trim(folder, tmp_path / "out", TEXTS[:20])
    small = tokenizers.load(tmp_path / "out", "decoder")
    assert small.decode(small.encode_batch([OTHER])[0]) == OTHER
    assert files.config_of(tmp_path / "out")["vocab_size"] == small.vocab_size


@pytest.mark.parametrize("single_word", [True, False])
def test_an_added_token_that_is_also_the_result_of_merges(single_word):
    whole = tokenizers.train_bpe([*TEXTS, *[",xyxy"] * 50], 700)
    whole.backend.add_tokens([AddedToken("xyxy", single_word=single_word)])
    assert whole.backend.get_vocab_size() == whole.vocab_size  # it was an entry before
    texts = [*TEXTS, "a ,xyxyz"] if single_word else list(TEXTS)  # that word needs the merges
    small, ids = trim_tokenizer(whole, texts)
    for old, new in zip(whole.encode_batch(texts), small.encode_batch(texts), strict=True):
        np.testing.assert_array_equal(old, np.array(ids)[new])


def test_gpt2_gets_no_rows_that_never_train(tmp_path):
    trained, end = tokenizers.train_bpe(TEXTS, 500).backend, "<|endoftext|>"
    vocab, merges = (json.loads(trained.to_str())["model"][key] for key in ("vocab", "merges"))
    entries = [*[token for token in vocab if not token.startswith("<")], end]
    backend = Tokenizer(
        models.BPE({token: i for i, token in enumerate(entries)}, [tuple(pair) for pair in merges])
    )
    backend.pre_tokenizer = trained.pre_tokenizer
    backend.add_special_tokens([AddedToken(end, special=True)])
    gpt2, out, rows = tmp_path / "gpt2", tmp_path / "out", len(entries)
    gpt2.mkdir()
    backend.save(str(gpt2 / "tokenizer.json"))
    config = CONFIG | dict(vocab_size=rows, bos_token_id=rows - 1, eos_token_id=rows - 1)
    (gpt2 / files.CONFIG).write_text(json.dumps(config))
    table = np.arange(float(rows), dtype=np.float32)[:, None]
    files.write_safetensors(gpt2 / files.SAFETENSORS, {"wte.weight": table}, {})

    jvae.trim(gpt2, out, TEXTS[:20])
    whole, small = (tokenizers.load(path, "decoder", add=False) for path in (gpt2, out))
    assert small.special == whole.special and small.special.end == end
    kept = np.asarray(files.open_checkpoint(out).tensors["wte.weight"])[:, 0]
    assert small.vocab_size == len(kept) == files.config_of(out)["vocab_size"] < rows
    for old, new in zip(*(t.encode_batch(TEXTS[:20]) for t in (whole, small)), strict=True):
        np.testing.assert_array_equal(old, kept[new])


def test_ids_in_the_config_follow(folder):
    new = {0: 0, 2: 1, 9: 2}
    config = dict(width=2, pad_token_id=9, bos_token_id=3, eos_token_id=[2, 3], sep_token_id=None)
    assert trim._renumbered(config, new) == dict(width=2, pad_token_id=2, eos_token_id=[1])


def test_the_command_writes_a_folder_once(folder, tmp_path, capsys):
    text, out = tmp_path / "mine.txt", tmp_path / "out"
    text.write_text("".join(f"{line}\n" for line in TEXTS))
    flags = ["--mode=trim", "--config=lm", f"--config.init.decoder={folder}"]
    assert main.main([*flags, f"--config.data.cache={tmp_path / 'cache'}"]) == 2
    assert "--out" in capsys.readouterr().err
    flags += [f"--config.data.train={text}", f"--config.data.cache={tmp_path / 'cache'}"]
    assert main.main([*flags, f"--out={out}"]) == 0
    assert f"--config.init.decoder={out}" in capsys.readouterr().out
    assert main.main([*flags, f"--out={out}"]) == 2
    assert "already" in capsys.readouterr().err


def test_what_cannot_be_trimmed_is_an_error(folder, tmp_path):
    words = tmp_path / "words"
    tokenizers.train_word_level(TEXTS).save(words)
    for name in (files.CONFIG, files.SAFETENSORS):
        (words / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(DataError, match="WordLevel"):
        jvae.trim(words, tmp_path / "out", TEXTS)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="file: cannot be written"):
        jvae.trim(folder, tmp_path / "file", TEXTS)
    (words / files.CONFIG).write_text("{}")
    with pytest.raises(WeightsError, match="vocab_size"):
        jvae.trim(words, tmp_path / "out", TEXTS)
