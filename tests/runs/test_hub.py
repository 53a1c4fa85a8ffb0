"""Models to the hub and back, against a stand-in of its HTTP API."""

import shutil

import jax
import numpy as np
import pytest

import jvae
from jvae import config as configs
from jvae import hub as hub_files
from jvae.data import tokenizers
from jvae.errors import WeightsError
from jvae.pretrained.files import SUMS
from jvae.runs import build, exports, loading, model_card
from jvae.runs.model_card import About
from jvae.tree import named_leaves
from tests.tools import hub as stand_in


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with stand_in.running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_TOKEN", server.token)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        hub_files._answers.cache_clear()
        yield server
    hub_files._answers.cache_clear()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of an export of a small model."""
    words = [f"word{i} and more" for i in range(30)]
    encoder = tokenizers.train_word_level(words, role="encoder")
    config = configs.load("optimus:tiny").unlock()
    for side in ("encoder", "decoder"):
        config.model[side].update(layers=1, width=16, heads=2, mlp=32, positions=8)
        config.model[side].vocab = encoder.vocab_size
    config.data.update(enc_row=8, dec_row=8, slots=1)
    model = build.build_model(config)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda a: rng.standard_normal(a.shape).astype(a.dtype), shapes)
    folder = tmp_path_factory.mktemp("out") / "model"
    about = About(results="| BLEU | 1 |", metrics={"nll_100": 9.25, "bleu": 50.0}, data="mine.txt")
    decoder = encoder.for_role("decoder")
    exports.export_model(folder, config.lock(), encoder, decoder, params, about)
    return folder


def test_a_model_goes_to_the_hub_and_comes_back(hub, exported):
    vae = jvae.load(exported)
    address = vae.push_to_hub("me/words", license="apache-2.0", message="Second try")
    assert address == f"{hub.endpoint}/me/words" and hub.messages == ["Second try"]
    files = hub.files["me/words"]
    card = files["README.md"].decode()
    head = card.split("---\n")[1]
    assert "license: apache-2.0\n" in head and "- type: nll_100\n      value: 9.25\n" in head
    assert 'vae = jvae.load("me/words")' in card and "# me/words\n" in card
    assert "| BLEU | 1 |" in card
    again = jvae.load("me/words")
    ours, theirs = named_leaves(vae.params), named_leaves(again.params)
    assert all((np.asarray(ours[path]) == np.asarray(theirs[path])).all() for path in ours)
    # A card that was edited there, and files that a hub adds, are not faults.
    files["README.md"] += b"\nEdited.\n"
    files[".eval_results"] = b""
    assert jvae.load("me/words").name == again.name
    # Uploaded again, a file of the earlier upload goes; the edited card stays if asked for.
    files["priors/flow.json"] = b"{}"
    files["SHA256SUMS"] += b"0" * 64 + b"  priors/flow.json\n"
    again.push_to_hub("me/words", keep_card=True)
    assert "priors/flow.json" not in files and ".gitattributes" in files
    assert files["README.md"].endswith(b"Edited.\n")
    again.push_to_hub("me/words")
    assert not files["README.md"].endswith(b"Edited.\n")


def test_files_of_others_and_public_repositories_are_left_alone(hub, exported):
    vae = jvae.load(exported)
    hub.files["me/other"] = {"weights.bin": b"1", "README.md": b"theirs"}
    with pytest.raises(WeightsError, match=r"no upload of jvae wrote \(weights.bin\)"):
        vae.push_to_hub("me/other")
    with pytest.raises(WeightsError, match="me/other: exists and is public"):
        vae.push_to_hub("me/other", private=True)
    assert hub.files["me/other"] == {"weights.bin": b"1", "README.md": b"theirs"}


def test_private_repositories_need_the_token(hub, exported, monkeypatch):
    jvae.load(exported).push_to_hub("me/secret", private=True)
    assert hub.private == {"me/secret"}
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(WeightsError, match="me/secret: no folder here, no model that ships.*login"):
        jvae.load("me/secret")
    with pytest.raises(WeightsError, match="me/secret: cannot be uploaded .*hf auth login"):
        jvae.load(exported).push_to_hub("me/secret")


def test_what_is_there_once_needs_no_hub_again(hub, exported, monkeypatch):
    jvae.load(exported).push_to_hub("me/words")
    jvae.load("me/words")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert jvae.load("me/words").name == "optimus-tiny"
    for name, message in (
        ("me/other", "me/other: no folder here, .* and the hub is not reachable"),
        ("words", "words: expected the name of a repository, such as user/my-model"),
    ):
        with pytest.raises(WeightsError, match=message):
            jvae.load(name) if "/" in name else jvae.load(exported).push_to_hub(name)
    with pytest.raises(WeightsError, match="me/words: the hub is not reachable"):
        jvae.load(exported).push_to_hub("me/words")


def test_what_the_hub_does_not_have(hub):
    with pytest.raises(WeightsError, match="no model that ships .* no repository on the Hugging F"):
        jvae.load("me/nothing")
    hub.files["me/other"] = {"README.md": b"a model of something else", "weights.bin": b"1"}
    hub.asked.clear()
    with pytest.raises(WeightsError, match="me/other: has no SHA256SUMS on the hub, so it is not"):
        jvae.load("me/other")
    assert not any("weights.bin" in path for path in hub.asked)  # nothing else was fetched


def test_a_card_names_pretrained_bases_and_hides_folders(exported, tmp_path, monkeypatch):
    shutil.copytree(exported, tmp_path / "model")
    config, encoder, decoder, params = loading.read_model(tmp_path / "model")
    config = config.unlock()
    config.init.encoder, config.init.decoder = "/home/me/bert", "openai-community/gpt2"
    text = model_card.write(config, (encoder, decoder), params, About(), SUMS)
    assert 'base_model:\n- "openai-community/gpt2"\n' in text and "/home/me" not in text
    # A folder here may have the form of a name on the hub; a metric may not be a number.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights/minilm").mkdir(parents=True)
    config.init.encoder, config.init.decoder = "weights/minilm", "small"
    about = About("me/words", metrics={"kl": float("nan"), "bleu": 5.0})
    text = model_card.write(config, (encoder, decoder), params, about, SUMS)
    assert "base_model" not in text and "nan" not in text.split("---")[1]
    assert "- name: me/again" in model_card.renamed(text, About("me/again")).replace('"', "")
    config.init.decoder = "distilbert-base-uncased"
    text = model_card.write(config, (encoder, decoder), params, About(), SUMS)
    assert "base_model:\n- distilbert-base-uncased\n" in text


def test_a_card_without_a_head_is_not_renamed():
    with pytest.raises(WeightsError, match="does not begin with lines between two ---"):
        model_card.renamed("# mine\n", About("me/words"))
