"""Every pretrained family under every preset for pretrained weights, as a user runs them: training
with an interruption, the exported model, and the decoder back in the layout that it came in.
"""

import importlib.util
import itertools
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import jvae
from jvae.cli.main import main
from jvae.data import tokenizers
from jvae.errors import WeightsError
from jvae.pretrained import files
from jvae.runs import published
from jvae.training.preemption import CODE
from tests.tools.interrupted import state, stop_at

SHARED = Path(__file__).parents[3] / "shared/fixtures/hf_backbones"
OWN = Path(__file__).parents[1] / "pretrained/hf"
PRESETS = ("optimus:smollm2", "adavae:smollm2", "della:smollm2", "sri:smollm2", "lm:pretrained")
DECODERS = (
    *("llama", "llama_rope3", "smollm", "qwen2", "qwen3", "mistral", "mistral_window"),
    *("gemma2", "gemma3", "gpt_neox", "opt", "gpt2"),
)
ENCODERS = ("roberta", "distilbert", "modernbert", "bert", *DECODERS)
STEPS, STOPPED = 4, 2
QUICK = (
    *("optim.warmup_steps=1", "data.row_tokens=32", "data.batch_rows=4"),
    *(
        f"train.steps={STEPS}",
        "train.log_every=1",
        f"train.check_every={STEPS}",
        "train.tensorboard=false",
    ),
    *("evals.samples=1", "evals.sentences=4", "evals.generate=2", "evals.interpolations=0"),
    # Kernels and their additions are then merged without rounding.
    *("init.frozen_dtype=float32", "model.decoder.dtype=float32"),
)
# What the presets choose for a deeper model or a longer chain.
SMALLER = {
    "della:smollm2": ("model.begin_layer=0",),
    "sri:smollm2": ("model.chain.steps=2",),
}
NOUNS = ("dog", "cat", "girl", "boy", "man", "bird")
TEXTS = [
    f"{article} {noun} {verb} {where}"
    for article, noun, verb, where in itertools.product(
        ("a", "the"), NOUNS, ("runs", "sleeps", "sings"), ("here", "in the park", "on a beach")
    )
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.is_dir(), reason="the folders of the families are not here"),
]


class Case(NamedTuple):
    preset: str
    encoder: str | None  # names of folders
    decoder: str

    @property
    def id(self) -> str:
        return "-".join(part for part in (self.preset, self.encoder, self.decoder) if part)


def cases() -> list[Case]:
    """Every preset with every decoder; where two stacks are wanted, every encoder occurs too."""
    decoders = itertools.cycle(DECODERS)
    first, *others = PRESETS
    out = [Case(first, encoder, next(decoders)) for encoder in ENCODERS]
    out += [Case(preset, None, decoder) for preset in others for decoder in DECODERS]
    return out + [Case("t5_vae:base", None, name) for name in ("t5", "t5_v1_1")]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "texts.txt"
    path.write_text("".join(f"{text}\n" for text in TEXTS))
    return path


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """A folder by name, as a user has it: config, weights and a tokenizer."""
    tokenizer = tokenizers.train_word_level(TEXTS)
    parent = tmp_path_factory.mktemp("folders")

    def folder(name: str) -> Path:
        out = parent / name
        if not out.exists():
            source = next(place / name for place in (SHARED, OWN) if (place / name).is_dir())
            out.mkdir()
            for file in ("config.json", "model.safetensors"):
                shutil.copyfile(source / file, out / file)
            tokenizer.save(out, config=True)
        return out

    return folder


@pytest.mark.filterwarnings("default")  # the reference library's own warnings are not ours
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.id)
def test_trains_resumes_and_exports(case, corpus, folder_of, tmp_path, monkeypatch):
    words = [f"--config={case.preset}", f"--config.data.train={corpus}", "--config.mesh.data=1"]
    words += [f"--config.{flag}" for flag in QUICK]
    words += [f"--config.init.decoder={folder_of(case.decoder)}"]
    if case.encoder:
        words += [f"--config.init.encoder={folder_of(case.encoder)}"]
        words += ["--config.model.encoder.dtype=float32"]
    words += [f"--config.{flag}" for flag in SMALLER.get(case.preset, ())]
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert main([*words, f"--workdir={whole}"]) == 0
    stop_at(monkeypatch, STOPPED)
    assert main([*words, f"--workdir={run}"]) == CODE
    assert main([*words, f"--workdir={run}"]) == 0
    assert state(run) == state(whole)

    jvae.export(run, tmp_path / "model")
    ours, again = jvae.load(run), jvae.load(tmp_path / "model")
    np.testing.assert_allclose(again.nll(TEXTS[:5], k=2), ours.nll(TEXTS[:5], k=2), rtol=1e-5)

    out = tmp_path / "out"
    if case.preset.startswith("t5"):  # such a decoder reads only z, which no published class does
        with pytest.raises(WeightsError, match="without cross-attention"):
            jvae.export_backbone(run, out, role="decoder")
        return
    jvae.export_backbone(run, out, role="decoder")
    came, went = (files.open_checkpoint(folder) for folder in (folder_of(case.decoder), out))
    assert went.config["model_type"] == came.config["model_type"]
    assert len(went.tensors) > 10
    opened = published.language_model(str(out))
    scores = opened.token_log_probs(TEXTS[:5])
    if case.preset.startswith("lm"):
        for got, want in zip(scores, ours.token_log_probs(TEXTS[:5]), strict=True):
            np.testing.assert_allclose(got.nats, want.nats, rtol=1e-4, atol=1e-4)
    if importlib.util.find_spec("torch"):
        for text, score in zip(TEXTS[:5], scores, strict=True):
            np.testing.assert_allclose(
                score.nats, reference_nats(out, opened.decoder, text), rtol=1e-4, atol=1e-4
            )


def reference_nats(folder: Path, tokenizer, text: str) -> np.ndarray:
    """Log-probability of every token after the first, by the reference class."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    ids = torch.tensor(np.asarray(tokenizer.encode_batch([text])[0])[None].astype(np.int64))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        log_probs = torch.log_softmax(model(ids).logits[0, :-1].double(), -1)
    return log_probs.gather(1, ids[0, 1:, None])[:, 0].numpy()
