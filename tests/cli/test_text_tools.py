"""The text modes: lines, files and pipes in; text, JSON and arrays out. The model is a stand-in."""

import functools
import io
import json
import logging
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jvae import config as configs
from jvae.backbones.gpt2 import Gpt2Config
from jvae.cli import text_tools
from jvae.cli.main import main
from jvae.data.dataset import RowSpec
from jvae.data.tokenizers import train_word_level
from jvae.inference.text_vae import LoadedVAE
from jvae.models import lm, optimus


class Spelt(LoadedVAE):
    """The latent counts letters; a latent is decoded to its counts."""

    def __init__(self, conditional=False):
        limits = {"dec": 9, "cond": 9} if conditional else {"dec": 9}
        for name, value in {
            "model": SimpleNamespace(latent_shape=(1, 2), post=SimpleNamespace(support="space")),
            "limits": limits,
        }.items():
            object.__setattr__(self, name, value)

    def encode(self, texts, sources=None, **_):
        return np.array([[[t.count("a"), t.count("b")]] for t in texts], np.float32)

    def sample_prior(self, n, seed=None, sources=None):
        return np.ones((n * len(sources or [0]), 1, 2), np.float32)

    def decode(self, z_egz, seed=None, sources=None, **settings):
        object.__setattr__(self, "settings", settings)
        if z_egz.shape[1:] != (1, 2):
            raise ValueError(f"latents have shape {z_egz.shape}")
        texts = [f"{'a' * round(a)}{'b' * round(b)}" for ((a, b),) in z_egz.tolist()]
        return [f"{s}:{t}" for s, t in zip(sources, texts, strict=True)] if sources else texts

    def nll(self, texts, sources=None, *, k=100, **_):
        return np.array([len(t) + k / 1000 for t in texts])


@pytest.fixture
def tool(tmp_path, monkeypatch, capsys):
    """Runs a mode: (words, standard input) -> standard output, or the error."""
    config, _ = configs.from_argv(["--config=optimus"])
    assert config is not None
    (tmp_path / "config.json").write_text(configs.to_json(config))

    def call(*words, stdin="", conditional=False, code=0, vae=None):
        model = vae or Spelt(conditional)
        monkeypatch.setattr(text_tools.loading, "load", lambda *_, **__: model)
        raw = stdin if isinstance(stdin, bytes) else stdin.encode()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw), "utf-8"))
        assert main([f"--workdir={tmp_path}", *words]) == code
        out, err = capsys.readouterr()
        return err if code else out

    return call


def test_sentences_from_flags_files_and_pipes(tool, tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("ab\nbba\n")
    assert tool("--mode=reconstruct", "--text=ab", "--text=bba") == "ab\nabb\n"
    assert tool("--mode=reconstruct", f"--input={path}") == "ab\nabb\n"
    assert tool("--mode=reconstruct", stdin="ab\r\nbba\n") == "ab\nabb\n"
    assert tool("--mode=sample", "--n=2") == "ab\nab\n"


def test_edits(tool):
    ends = ("--text=a", "--text=aabb")
    assert tool("--mode=interpolate", "--steps=3", *ends) == "a\naab\naabb\n"
    assert tool("--mode=analogy", *ends, "--text=b") == "abbb\n"
    lines = tool("--mode=traverse", "--text=ab", "--dims=1").splitlines()
    assert lines[4] == "1\t+1\tabb" and len(lines) == 7
    assert len(tool("--mode=traverse", "--text=ab").splitlines()) == 14


class Varied(Spelt):
    """The prior varies in the second dimension alone."""

    def sample_prior(self, n, seed=None, sources=None):
        z_egz = super().sample_prior(n, seed, sources)
        z_egz[::2, 0, 1] = 3
        return z_egz


def test_traverse_moves_the_most_active_dimensions(tool, monkeypatch, caplog):
    monkeypatch.setattr(text_tools, "ACTIVE", 1)
    caplog.set_level(logging.INFO)
    lines = tool("--mode=traverse", "--text=ab", vae=Varied()).splitlines()
    assert [line[0] for line in lines] == ["1"] * 7
    assert "the 1 most active of 2 dimensions: 1; --dims=all" in caplog.text
    all_dims = tool("--mode=traverse", "--text=ab", "--dims=all", vae=Varied()).splitlines()
    assert [line[0] for line in all_dims] == ["0"] * 7 + ["1"] * 7


def test_flags_of_decoding_reach_every_mode_that_writes(tool):
    vae = Spelt()
    tool("--mode=sample", "--temperature=0.7", "--top_p=0.9", vae=vae)
    assert (vae.settings["temperature"], vae.settings["top_p"]) == (0.7, 0.9)
    assert vae.settings["method"] == "sample"
    for words in (
        ["--mode=reconstruct", "--text=ab"],
        ["--mode=interpolate", "--text=a", "--text=b"],
        ["--mode=analogy", "--text=a", "--text=b", "--text=a"],
        ["--mode=traverse", "--text=a", "--dims=0"],
    ):
        tool(*words, vae=vae)
        assert vae.settings == {}
        tool(*words, "--top_k=5", "--max_length=9", vae=vae)
        assert vae.settings == {"method": "sample", "top_k": 5, "max_length": 9}
        tool(*words, "--beam_width=2", vae=vae)
        assert vae.settings == {"method": "beam", "beam_width": 2}
    for words, message in (
        (["--mode=nll", "--top_k=5"], "--top_k has no effect in --mode=nll; it applies to sample"),
        (["--mode=eval", "--top_k=5"], "evaluation, set --config.decode.top_k"),
        (["--mode=sample", "--top_k=5", "--method=greedy"], "it is read by sample"),
        (["--mode=sample", "--top_k=5", "--beam_width=3"], "--top_k is for sampling and --beam"),
        (["--mode=sample", "--temperature=-1"], "temperature"),
        (["--mode=sample", "--temp=1"], "Unknown command line flag 'temp'"),
    ):
        assert message in tool(*words, code=2)


def test_neighbors_and_likelihoods(tool, tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("b\naabb\nabb\n")
    assert tool("--mode=neighbors", "--text=ab", f"--corpus={path}", "--n=1") == "0.0000\taabb\n"
    record = json.loads(
        tool("--mode=neighbors", "--text=ab", f"--corpus={path}", "--n=1", "--format=json")
    )
    assert record["line"] == 2 and record["input"] == "ab"
    assert tool("--mode=nll", "--k=5", stdin="a\nbbb\n") == "1.0050\ta\n3.0050\tbbb\n"


def test_latents_through_pipes_and_files(tool, tmp_path):
    lines = tool("--mode=encode", stdin="ab\nbba\n")
    assert [json.loads(line)["z"] for line in lines.splitlines()] == [[[1, 1]], [[1, 2]]]
    assert tool("--mode=decode", stdin=lines) == "ab\nabb\n"
    path = tmp_path / "deep" / "z.npz"
    assert tool("--mode=encode", f"--out={path}", stdin="ab\nbba\n") == ""
    with np.load(path) as arrays:
        assert arrays["z"].tolist() == [[[1, 1]], [[1, 2]]] and arrays["text"].tolist()[1] == "bba"
    assert tool("--mode=decode", f"--input={path}", "--format=json") == (
        '{"text": "ab"}\n{"text": "abb"}\n'
    )
    assert tool("--mode=reconstruct", f"--out={tmp_path}/o.json", "--text=ba") == ""
    assert json.loads((tmp_path / "o.json").read_text()) == {"input": "ba", "text": "ab"}


def test_conditional_models_read_pairs(tool):
    assert tool("--mode=reconstruct", stdin="s\tab\nt\tba\n", conditional=True) == "s:ab\nt:ab\n"
    assert tool("--mode=sample", "--n=2", stdin="s\nt\n", conditional=True) == (
        "s:ab\ns:ab\nt:ab\nt:ab\n"
    )
    for words, stdin, message in (
        (["--mode=interpolate", "--text=s\ta", "--text=t\tb"], "", "an edit uses a single source"),
        (["--mode=reconstruct"], "s\ta\nb\n", "line 2 has 0 tabs"),
        (["--mode=reconstruct"], "a\tb\tc\n", "line 1 has 2 tabs"),
        (["--mode=sample"], "", "a source is needed: give --text="),
        (["--mode=decode"], "{}", "decode is for models without sources"),
    ):
        assert message in tool(*words, stdin=stdin, conditional=True, code=2)


@pytest.mark.parametrize(
    "words, stdin, message",
    [
        (["--mode=reconstruct"], "", "nothing to reconstruct: give --text="),
        (["--mode=interpolate", "--text=a"], "", "interpolate takes two sentences, not 1"),
        (["--mode=analogy"], "a\nb\n", "analogy takes three sentences, a : b as c : ?, not 2"),
        (["--mode=traverse", "--text=a", "--dims=x"], "", "--dims=x: expected numbers"),
        (["--mode=traverse", "--text=a", "--dims=2"], "", "--dims has 2; the latent has dim"),
        (["--mode=neighbors", "--text=a"], "", "add --corpus=FILE"),
        (["--mode=neighbors", "--text=a", "--corpus=/no.txt"], "", "/no.txt: no such file"),
        (["--mode=encode", "--text=a", "--format=npz"], "", "format npz needs a file"),
        (["--mode=encode", "--text=a", "--input=b"], "", "both given"),
        (["--mode=encode", "--text=a", "--out=/proc/x/y.npz"], "", "cannot be written"),
        (["--mode=decode"], '{"y": 1}\n', "not a latent ('z'); expected a JSON object"),
        (["--mode=decode"], '{"z": [1]}\n', "standard input: latents have shape"),
        (["--mode=decode", "--input=/no.npz"], "", "/no.npz: no such file"),
    ],
)
def test_mistakes_get_one_message(tool, words, stdin, message):
    error = tool(*words, stdin=stdin, code=2)
    assert message in error and "Traceback" not in error


def test_a_file_that_is_no_text(tool, tmp_path):
    path = tmp_path / "in.txt"
    path.write_bytes(b"ab\n\xff\n")
    error = tool("--mode=encode", f"--input={path}", code=2)
    assert error == f"error: {path}:2: not valid UTF-8 (byte 0xff at column 1)\n"


# --------------------------------------------------------------------------------------------------
# A real model, small, and what people give it.


@functools.cache
def small(kind="optimus") -> LoadedVAE:
    tokenizer = train_word_level(["a b c d e f g h"])
    sizes = dict(layers=1, width=8, heads=2, mlp=8, vocab_multiple=8)
    stack = Gpt2Config(vocab=tokenizer.vocab_size, positions=17, **sizes)
    if kind == "lm":
        model, limits = lm.build(lm.LmConfig(stack)), {"dec": 16}
    else:
        model = optimus.build(optimus.OptimusConfig(stack, stack, latent=3))
        limits = {"enc": 16, "dec": 16}
    params = jax.jit(model.init)(jax.random.key(0))
    return LoadedVAE(model, params, tokenizer, tokenizer, RowSpec(8), limits, 4)


def mode_words(mode, path):
    """A call of every mode that reads sentences: the last of them is the first line of a file."""
    before = {"interpolate": ["--text=a"], "analogy": ["--text=a", "--text=b"]}.get(mode, [])
    (text, *_) = path.read_text().split("\n")
    words = [f"--mode={mode}", "--steps=2", "--n=1", "--k=1", "--dims=0"]
    return [*words, *before, f"--text={text}", *([f"--corpus={path}"] * (mode == "neighbors"))]


READING = ("reconstruct", "interpolate", "analogy", "traverse", "neighbors", "encode", "nll")


@pytest.mark.parametrize("mode", READING)
def test_every_mode_says_what_it_cannot_read(tool, tmp_path, mode):
    path = tmp_path / "in.txt"
    for text, message in (
        ("", "is empty; there is nothing to encode"),
        (" \t ", "is empty; there is nothing to encode"),
        ("a " * 5000, "5002 tokens with tokenizer"),
        ("a </s> b", "spells the special token '</s>'"),
    ):
        path.write_text(f"{text}\n")
        error = tool(*mode_words(mode, path), vae=small(), code=2)
        assert error.startswith("error: sentence ") and message in error
        assert error.count("\n") == 1
    for text in ("a 🙂 b", "  a b\u3000", "a b\r"):
        path.write_text(f"{text}\n", newline="")
        assert tool(*mode_words(mode, path), vae=small()).endswith("\n")


def test_tables_and_json_are_read_as_corpora_are(tool, tmp_path):
    want = tool("--mode=encode", "--text=a, b", "--text=c")
    for name, content in (
        ("in.csv", 'label,text\n1,"a, b"\n0,c\n'),
        ("in.tsv", "1\ta, b\r\n0\tc"),
        ("in.jsonl", '{"text": "a, b"}\n"c"\n'),
        ("in.json", '["a, b", "c\\n"]'),
        ("in.txt", "\ufeffa, b\r c \x0c\n"),
        ("in", "a, b\nc"),
    ):
        path = tmp_path / name
        path.write_bytes(content.encode())
        assert tool("--mode=encode", f"--input={path}") == want
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("s\ta\n")
    assert tool("--mode=reconstruct", f"--input={pairs}", conditional=True) == "s:a\n"
    error = tool("--mode=encode", f"--input={tmp_path}/in.npz", code=2)
    assert error == (
        f"error: {tmp_path}/in.npz: .npz files are not supported; expected one of .csv, .json, "
        ".jsonl, .ndjson, .parquet, .tsv, .txt, plain or .gz. Rename the file, or "
        "set data.format to its format\n"
    )


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x93NUMPY\x01"])
def test_torn_arrays_are_one_message(tool, tmp_path, data):
    path = tmp_path / "z.npz"
    path.write_bytes(data)
    error = tool("--mode=decode", f"--input={path}", code=2)
    assert error.startswith(f"error: {path}: not a latent (") and error.count("\n") == 1


def test_what_pipes_hold(tool):
    want = tool("--mode=encode", stdin="a b\nc\n", vae=small())
    z = [json.loads(line)["z"] for line in want.splitlines()]
    for same in ("a b\r\nc\r\n", "\ufeffa b\nc", " a b \n\tc\n"):
        lines = tool("--mode=encode", stdin=same, vae=small()).splitlines()
        assert [json.loads(line)["z"] for line in lines] == z
    error = tool("--mode=encode", stdin="a\n\nb\n", vae=small(), code=2)
    assert error == "error: standard input:2: empty line; expected a sentence\n"
    error = tool("--mode=encode", stdin=b"a\n\xff\n", vae=small(), code=2)
    assert error == "error: standard input:2: not valid UTF-8 (byte 0xff at column 1)\n"
    for bad in (
        "[1, 2]\n",
        "a b\n",
        '{"z": [[["x"]]]}\n',
        '{"z": [[[1, NaN, 0]]]}\n',
        '{"z": 1}\n',
    ):
        error = tool("--mode=decode", stdin=bad, vae=small(), code=2)
        assert error.startswith("error: standard input") and error.count("\n") == 1


@pytest.mark.parametrize("mode", ["interpolate", "analogy", "traverse", "neighbors"])
def test_a_language_model_has_nothing_to_edit(tool, tmp_path, mode):
    path = tmp_path / "in.txt"
    path.write_text("a\n")
    error = tool(*mode_words(mode, path), vae=small("lm"), code=2)
    assert f"error: {mode} needs a latent, which the model of" in error


def test_a_terminal_that_takes_no_such_letters(tool, monkeypatch):
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    error = tool("--mode=encode", "--text=🙂", vae=small(), code=2)
    assert "standard output only takes ascii; use --out=FILE" in error


def test_sentences_from_flags_under_a_locale_without_utf8(tool):
    assert tool("--mode=nll", "--text=a\udce2\udc80\udc93b") == "3.1000\ta\u2013b\n"
    assert "surrogate" in tool("--mode=nll", "--text=a\udcff", code=2)
