"""What a config takes from pretrained folders, by config.json and the files next to it."""

import json
import logging
import shutil

import pytest

from jvae import config as configs
from jvae.cli import main
from jvae.errors import ConfigError, WeightsError
from jvae.runs import start, workdir
from jvae.validation.validate import validate

BERT = dict(
    model_type="bert",
    num_hidden_layers=6,
    hidden_size=24,
    num_attention_heads=3,
    intermediate_size=40,
    vocab_size=99,
    max_position_embeddings=48,
    hidden_dropout_prob=0.4,
)
LLAMA = dict(
    model_type="llama",
    num_hidden_layers=8,
    hidden_size=24,
    num_attention_heads=6,
    num_key_value_heads=2,
    intermediate_size=40,
    vocab_size=99,
    max_position_embeddings=64,
    rope_parameters=dict(rope_type="default", rope_theta=5e5),
    tie_word_embeddings=True,
)
T5 = dict(
    model_type="t5",
    num_layers=3,
    d_model=24,
    num_heads=2,
    d_kv=8,
    d_ff=40,
    vocab_size=99,
    feed_forward_proj="gated-gelu",
)


def folder(path, config, tokenizer=True, pooling=None):
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    if tokenizer:
        (path / "tokenizer.json").write_text("{}")  # opened with the data, not here
    if pooling is not None:
        (path / "1_Pooling").mkdir(exist_ok=True)
        (path / "1_Pooling/config.json").write_text(json.dumps(pooling))
        modules = [
            dict(path="", type="sentence_transformers.models.Transformer"),
            dict(path="1_Pooling", type="sentence_transformers.models.Pooling"),
        ]
        (path / "modules.json").write_text(json.dumps(modules))
    return str(path)


@pytest.fixture
def bert(tmp_path):
    return folder(tmp_path / "bert", BERT)


@pytest.fixture
def llama(tmp_path):
    return folder(tmp_path / "llama", LLAMA)


def configure(spec, *flags, folder=None, **init):
    named = [f"--config.init.{role}={name}" for role, name in init.items()]
    return start.configure(configs.load(spec), [*named, *flags], folder)


@pytest.mark.parametrize(
    "spec, roles",
    [
        ("optimus", "both"),
        ("optimus:base", "both"),
        ("adavae", "both"),
        ("adavae:base", "decoder"),
        ("della", "both"),
        ("della", "decoder"),
        ("sri:transformer", "decoder"),
        ("lm", "decoder"),
    ],
)
def test_sizes_and_tokenizers_come_from_the_folders(spec, roles, bert, llama):
    named = dict(encoder=bert, decoder=llama) if roles == "both" else dict(decoder=llama)
    config, before = configure(spec, **named), configs.load(spec)
    decoder = config.model.decoder
    assert (decoder.backbone, decoder.layers, decoder.width) == ("llama", 8, 24)
    assert (decoder.heads, decoder.kv_heads, decoder.head, decoder.theta) == (6, 2, 4, 5e5)
    assert decoder.tied and decoder.positions == 64 and decoder.vocab == 0
    for key in ("dropout", "dtype", "remat", "xent_chunk"):  # matters of training
        assert decoder[key] == before.model.decoder[key]
    assert config.data.decoder_tokenizer == llama
    if roles == "both":
        assert config.model.encoder.backbone == "bert" and config.model.encoder.layers == 6
        assert config.model.encoder.dropout == before.model.decoder.dropout
        assert config.data.encoder_tokenizer == bert
    elif "encoder" not in config.model:  # one stack reads both sides
        assert config.data.encoder_tokenizer == llama
    validate(config)


def test_one_folder_is_both_stacks_of_a_t5(tmp_path, bert):
    name = folder(tmp_path / "t5", T5)
    config = configure("t5_vae", decoder=name)
    assert config.model.decoder.layers == 3 and config.model.decoder.gated
    assert config.data.encoder_tokenizer == config.data.decoder_tokenizer == name
    assert config.model.decoder.bias_std == configs.load("t5_vae").model.decoder.bias_std
    validate(config)
    with pytest.raises(ConfigError, match=r"init.decoder is set, but t5_vae .*\(decoder bert\)"):
        configure("t5_vae", decoder=bert)
    with pytest.raises(ConfigError, match="init.encoder is set, but t5_vae loads no such part"):
        configure("t5_vae", decoder=name, encoder=bert)


def test_two_stacks_with_an_embedding_each_take_a_folder_each(tmp_path):
    names = {role: folder(tmp_path / role, T5) for role in start.ROLES}
    config = configure("della:t5", "--config.model.share_embedding=false", **names)
    assert not config.model.share_embedding
    assert [part.key for part, _ in start.wanted(config)] == ["encoder", "decoder"]
    for role, name in names.items():
        assert config.model[role].layers == 3 and config.data[f"{role}_tokenizer"] == name
    with pytest.raises(ConfigError, match="init.encoder is set, but della loads no such part"):
        configure("della:t5", **names)


def test_a_backbone_that_the_family_cannot_use(bert, llama):
    with pytest.raises(ConfigError, match="decoder.backbone is bert, which cannot write text"):
        validate(configure("optimus", decoder=bert))
    with pytest.raises(ConfigError, match="init.encoder is set, but lm loads no such part"):
        configure("lm", encoder=bert)
    with pytest.raises(ConfigError, match="init.decoder is set, but sri loads no such part"):
        configure("sri", decoder=llama)


def test_flags_that_contradict_a_folder_are_one_error(bert, llama):
    flags = ("model.encoder.layers=7", "model.decoder.theta=1e4", "model.decoder.kv_heads=2")
    with pytest.raises(ConfigError) as error:
        configure("optimus", *flags, encoder=bert, decoder=llama)
    assert f"--config.model.encoder.layers=7, init.encoder={bert} has 6" in str(error.value)
    assert f"--config.model.decoder.theta=10000, init.decoder={llama} has 500000" in str(
        error.value
    )
    assert "kv_heads" not in str(error.value)
    with pytest.raises(ConfigError, match=r"decoder.backbone=gpt2, init.decoder=\S+ has llama"):
        configure("optimus", "model.decoder.backbone=gpt2", decoder=llama)
    config = configure("optimus", "model.decoder.dropout=0.3", "model.latent=5", decoder=llama)
    assert config.model.decoder.dropout == 0.3 and config.model.latent == 5


def test_a_config_file_that_contradicts_a_folder(tmp_path, bert):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from jvae import config\n"
        "def get_config(arg):\n"
        "    c = config.load('optimus:base').unlock()\n"
        "    c.model.encoder.layers = 7\n"
        f"    c.init.encoder = {bert!r}\n"
        "    return c\n"
    )
    with pytest.raises(ConfigError, match=r"encoder.layers in the config file is 7, init.* has 6"):
        configure(str(mine))
    config = configure(str(mine), "model.encoder.layers=6")
    assert config.model.encoder.width == 24  # that of the preset is nobody's own


def test_folders_that_no_backbone_reads(tmp_path):
    name = folder(tmp_path / "xlnet", dict(BERT, model_type="xlnet"))
    with pytest.raises(ConfigError, match=r"model_type 'xlnet', .*: bart, bert, .*gpt2, .*t5"):
        configure("optimus", encoder=name)
    name = folder(tmp_path / "listed", dict(BERT, model_type=["bert"]))
    with pytest.raises(ConfigError, match=r"says model_type \['bert'\], which no backbone reads"):
        configure("optimus", encoder=name)
    bare = {key: value for key, value in BERT.items() if key != "model_type"}
    assert configure("optimus", encoder=folder(tmp_path / "bare", bare)).model.encoder.layers == 6
    config = folder(tmp_path / "own", configs.load("lm").to_dict())
    with pytest.raises(ConfigError, match="is a model of jvae; start from it with init.model"):
        configure("optimus", decoder=config)
    yarn = dict(LLAMA, rope_parameters=dict(rope_type="yarn", factor=2.0, rope_theta=1e4))
    with pytest.raises(WeightsError, match="rotary scaling is 'yarn'; implemented: default, "):
        configure("optimus", decoder=folder(tmp_path / "yarn", yarn))
    opt = dict(model_type="opt", hidden_size=24, word_embed_proj_dim=12)
    with pytest.raises(WeightsError, match="word_embed_proj_dim is 12; only 24 is implemented"):
        configure("optimus", decoder=folder(tmp_path / "opt", opt))
    with pytest.raises(WeightsError, match=r"^init.decoder: ./nothing: no such folder"):
        configure("optimus", decoder="./nothing")


def test_tokenizers_that_are_set_or_not_there(tmp_path, bert):
    config = configure("optimus", "data.encoder_tokenizer=mine", encoder=bert)
    assert config.data.encoder_tokenizer == "mine"
    bare = folder(tmp_path / "bare", BERT, tokenizer=False)
    assert configure("optimus:base", encoder=bare).data.encoder_tokenizer == "bert-base-cased"


MEAN = dict(
    word_embedding_dimension=24, pooling_mode_cls_token=False, pooling_mode_mean_tokens=True
)
CLS = dict(pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)


@pytest.mark.parametrize(
    "spec, pooling, flags, pool, note",
    [
        ("optimus:base", MEAN, (), "mean", "with mean pooling, so model.pool is mean and not cls"),
        ("optimus:tiny", MEAN, (), "mean", None),
        ("optimus:tiny", CLS, (), "cls", "so model.pool is cls and not mean"),
        ("optimus:base", MEAN, ("model.pool=max",), "max", "model.pool=max is kept"),
        ("optimus:base", MEAN, ("model.pool=mean",), "mean", None),
        ("optimus:base", dict(pooling_mode="lasttoken"), (), "last", "model.pool is last"),
        ("optimus:base", dict(MEAN, pooling_mode_max_tokens=True), (), "cls", None),
        ("adavae", MEAN, (), "latent_attn", "which adavae does not have"),
    ],
)
def test_pooling_is_that_of_a_sentence_encoder(tmp_path, caplog, spec, pooling, flags, pool, note):
    name = folder(tmp_path / "minilm", BERT, pooling=pooling)
    with caplog.at_level(logging.INFO):
        assert configure(spec, *flags, encoder=name).model.pool == pool
    said = [line for line in caplog.messages if "was trained with" in line]
    assert len(said) == (note is not None) and all(note in line for line in said)


@pytest.mark.parametrize(
    "config, pooling, flags, causal",
    [
        (LLAMA, dict(pooling_mode="lasttoken"), (), True),
        (LLAMA, dict(pooling_mode="lasttoken"), ("model.causal_encoder=false",), False),
        (LLAMA, MEAN, (), False),
        (BERT, dict(pooling_mode="lasttoken"), (), False),
    ],
)
def test_a_decoder_whose_last_token_is_pooled_reads_forwards(
    tmp_path, config, pooling, flags, causal
):
    name = folder(tmp_path / "encoder", config, pooling=pooling)
    assert configure("optimus:base", *flags, encoder=name).model.causal_encoder is causal


def test_a_run_that_has_begun_needs_no_folder(tmp_path, llama):
    name = folder(tmp_path / "minilm", BERT, pooling=MEAN)
    run = tmp_path / "run"
    flags = ("model.encoder.dropout=0.2", "train.steps=7")
    named = dict(encoder=name, decoder=llama)
    for spec in ("optimus:base", "della", "adavae:base"):
        config = configure(spec, *flags[spec != "optimus:base" :], folder=run, **named)
        run.mkdir(exist_ok=True)
        workdir.claim(run, config)
        (run / "ckpt/last/1").mkdir(parents=True)
        for source in (name, llama):
            shutil.move(source, f"{source}.away")
        again = configure(spec, *flags[spec != "optimus:base" :], folder=run, **named)
        assert configs.diff(config, again) == {}
        if spec == "optimus:base":
            # Left out, a flag counts as it does for every run.
            assert list(configs.diff(config, configure(spec, folder=run, **named))) == [
                "model.encoder.dropout",
                "train.steps",
            ]
            changed = configure(spec, *flags, "model.encoder.layers=7", folder=run, **named)
            assert configs.diff(config, changed) == {"model.encoder.layers": (6, 7)}
        with pytest.raises(WeightsError, match="no such folder"):
            configure(spec, *flags[1:], folder=run, **named | dict(decoder="./other"))
        for source in (name, llama):
            shutil.move(f"{source}.away", source)
        shutil.rmtree(run)


def test_the_command_line_knows_the_run(tmp_path, bert, monkeypatch):
    words = ["--config=optimus", f"--config.init.encoder={bert}", f"--workdir={tmp_path / 'run'}"]
    config, rest = configs.from_argv([*words, "--mode=eval"], None, main._configured)
    assert config.model.encoder.layers == 6 and rest == [words[2], "--mode=eval"]
    workdir.claim((tmp_path / "run"), config)
    (tmp_path / "run/ckpt/last/1").mkdir(parents=True)
    shutil.rmtree(bert)
    again, _ = configs.from_argv(words, None, main._configured)
    assert configs.diff(config, again) == {}
