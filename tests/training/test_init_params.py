"""Step 0: backbones from folders in Hugging Face's layout, the rest fresh, all of it logged."""

import json
import logging
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from jvae import config as configs
from jvae.data import tokenizers
from jvae.errors import ConfigError, WeightsError
from jvae.models import family
from jvae.parallel import mesh as meshes
from jvae.parallel import rules
from jvae.pretrained import bert, files, gpt2, names
from jvae.pretrained.export import export_backbone
from jvae.pretrained.files import SAFETENSORS as ST
from jvae.pretrained.files import Checkpoint
from jvae.runs import build, phases, start
from jvae.training import init_params, program
from jvae.tree import named_leaves
from jvae.validation.validate import validate

FOLDERS = Path(__file__).parents[3] / "shared/fixtures/hf_backbones"
STACK = dict(layers=2, width=16, heads=2, mlp=32, positions=16)
TEXT = ["the cat sat on the mat", "a dog ran over the hill", "the hill was green"]


def _byte_bpe(folder: Path) -> None:
    """A tokenizer in the manner of GPT-2, with <|endoftext|> alone."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=270,
        special_tokens=[AddedToken("<|endoftext|>", special=True)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(TEXT, trainer)
    folder.mkdir(parents=True)
    backend.save(str(folder / "tokenizer.json"))


def _word_pieces(folder: Path) -> None:
    folder.mkdir(parents=True)
    words = sorted({w for line in TEXT for w in line.split()})
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *words]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(entries)) + "\n")


class Place:
    """Two folders, `bert` and `gpt2`, the config that names them, and what they hold."""

    def __init__(self, root: Path):
        self.bert, self.gpt2 = root / "bert", root / "gpt2"
        _word_pieces(self.bert)
        _byte_bpe(self.gpt2)
        self.encoder = tokenizers.load(self.bert, "encoder")
        self.decoder = tokenizers.load(self.gpt2, "decoder")
        self.rows = self.decoder.vocab_size - 3
        config = configs.load("optimus:base").copy_and_resolve_references()
        config.unlock()
        for side, tokenizer in (("encoder", self.encoder), ("decoder", self.decoder)):
            config.model[side].update(**STACK, vocab=tokenizer.vocab_size)
        config.init.update(encoder=str(self.bert), decoder=str(self.gpt2))
        self.config = config
        rng = np.random.default_rng(0)
        abstract = jax.eval_shape(self.run().model.init, jax.random.key(0))
        self.params = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), abstract)
        tables = {
            self.bert: bert.table(self.encoder.vocab_size, "encoder", "posterior/pooler"),
            self.gpt2: gpt2.table(self.rows, "decoder"),
        }
        for folder, table in tables.items():
            bone = bert.BACKBONE if folder == self.bert else gpt2.BACKBONE
            section = config.model["encoder" if folder == self.bert else "decoder"].to_dict()
            size = section | {"vocab": self.rows if folder == self.gpt2 else section["vocab"]}
            end = {"bos_token_id": 0, "eos_token_id": 0} if folder == self.gpt2 else {}
            special = end or {"pad_token_id": 0}
            export_backbone(folder, bone, table, self.params, size, special)

    def run(self, **model) -> build.Run:
        config = self.config.copy_and_resolve_references()
        config.model.update(model)
        built = build.build_model(config)
        rows = build.RowSpec(16, 16, 1, 1)
        return build.Run(config, Path(), self.encoder, self.decoder, {}, rows, built, {}, [])

    def tell(self, folder: Path, **values) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("hf"))


@pytest.fixture
def changed(place, tmp_path, monkeypatch):
    """A copy of the folders that a test may damage; the place points to it meanwhile."""
    for name in ("bert", "gpt2"):
        shutil.copytree(getattr(place, name), tmp_path / name)
        monkeypatch.setattr(place, name, tmp_path / name)
    config = place.config.copy_and_resolve_references()
    config.init.update(encoder=str(tmp_path / "bert"), decoder=str(tmp_path / "gpt2"))
    monkeypatch.setattr(place, "config", config)
    return place


FRESH = {"posterior/head/kernel", "decoder/memory/kernel", "decoder/offset/kernel"}


@pytest.mark.slow
def test_optimus_base_starts_from_both_backbones_on_its_mesh(place, caplog):
    run, key = place.run(), jax.random.key(5)
    mesh = meshes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    abstract = jax.eval_shape(run.model.init, key)
    where = rules.shardings(run.model.axes, abstract, mesh)
    with caplog.at_level(logging.INFO, "jvae.training.init_params"):
        params = named_leaves(init_params.initial_params(run, where, key))
    want, where = named_leaves(place.params), named_leaves(where)
    assert params.keys() == want.keys() and list(params) == list(named_leaves(abstract))
    init = lambda key: {p: named_leaves(run.model.init(key))[p] for p in FRESH}  # noqa: E731
    scratch = jax.jit(init)(key)
    split = 0
    for path, leaf in params.items():
        assert leaf.sharding == where[path], path
        split += not leaf.is_fully_replicated
        got = np.asarray(leaf)
        if path in FRESH:
            np.testing.assert_allclose(got, scratch[path], rtol=1e-6, err_msg=path)
        elif path.endswith("embed/token/table"):
            rows = place.rows if path.startswith("decoder") else place.encoder.vocab_size
            np.testing.assert_array_equal(got[:rows], want[path][:rows])
        else:
            np.testing.assert_array_equal(got, want[path], err_msg=path)
    assert split > 10
    table = np.asarray(params["decoder/embed/token/table"])
    mean = want["decoder/embed/token/table"][: place.rows].mean(0)
    new = table[place.rows : place.rows + 3]
    np.testing.assert_allclose(new, np.tile(mean, (3, 1)), rtol=1e-4, atol=1e-6)
    assert not np.any(table[place.rows + 3 :])

    count = lambda keep: sum(leaf.size for p, leaf in params.items() if keep(p))  # noqa: E731
    bert_size = count(lambda p: p.startswith(("encoder/", "posterior/pooler")))
    assert f"init.encoder: {bert_size:,} parameters" in caplog.text
    gpt2_size = count(lambda p: p.startswith("decoder/") and p not in FRESH)
    assert f"init.decoder: {gpt2_size:,} parameters" in caplog.text
    assert f"initialised at random: {count(FRESH.__contains__):,} parameters" in caplog.text
    assert "3 new vocabulary rows" in caplog.text


@pytest.mark.slow
def test_one_backbone_or_none(place, caplog):
    place.config.init.update(encoder="")
    try:
        run = place.run(pool="mean")
        key = jax.random.key(0, impl="unsafe_rbg")  # compiles in no time
        params = named_leaves(init_params.initial_params(run, None, key))
        want = named_leaves(place.params)
        name = "decoder/layers/mlp/up/kernel"
        np.testing.assert_array_equal(params[name], want[name])
        other = params["encoder/layers/mlp/up/kernel"]
        np.testing.assert_allclose(np.std(other), 0.02, rtol=0.1)
    finally:
        place.config.init.update(encoder=str(place.bert))


def test_an_unused_pooler_is_told(place, caplog):
    run = place.run(pool="mean")
    part = family("optimus").parts(run.config.model)[0]
    leaves = named_leaves(jax.eval_shape(run.model.init, jax.random.key(0)))
    with caplog.at_level(logging.INFO, "jvae.training.init_params"):
        actual = init_params._load(run, part, str(place.bert), leaves)
    assert not any(path.startswith("posterior") for path in actual)
    assert "2 tensors" in caplog.text and "pooler.dense.bias, pooler.dense.weight" in caplog.text


def _init(place):
    return init_params.initial_params(place.run(), None, jax.random.key(0))


def test_sizes_that_differ_say_what_to_set(changed):
    changed.tell(changed.bert, num_hidden_layers=3)
    with pytest.raises(WeightsError, match="--config.model.encoder.layers=3"):
        _init(changed)
    changed.tell(changed.bert, num_hidden_layers=2, vocab_size=changed.encoder.vocab_size - 1)
    with pytest.raises(WeightsError, match=r"word_embeddings.weight .* has shape"):
        _init(changed)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("eos_token_id", 7, "eos_token_id is 7, which is not a special token"),
        ("pad_token_id", 400, "pad_token_id is 400, which is not a special token"),
        ("pad_token_id", {"id": 0}, "pad_token_id is {'id': 0}, which is not a special token"),
    ],
)
def test_special_ids_must_be_those_of_the_tokenizer(changed, key, value, message):
    """No tokenizer next to the weights."""
    for folder, file in ((changed.gpt2, "tokenizer.json"), (changed.bert, "vocab.txt")):
        (folder / file).unlink()
    changed.config.init.encoder = ""
    changed.tell(changed.gpt2, **{key: value})
    with pytest.raises(WeightsError, match=message):
        _init(changed)
    changed.tell(changed.bert, pad_token_id=3)
    changed.config.init.update(encoder=str(changed.bert))
    with pytest.raises(WeightsError, match="pad_token_id is 3, there it is 0"):
        _init(changed)


def test_a_tokenizer_of_the_same_size_is_not_enough(changed):
    lines = (changed.bert / "vocab.txt").read_text().splitlines()
    swapped = [*lines[:10], lines[11], lines[10], *lines[12:]]
    (changed.bert / "vocab.txt").write_text("\n".join(swapped) + "\n")
    with pytest.raises(WeightsError, match="next to the weights differs, first at id 10"):
        _init(changed)
    (changed.bert / "vocab.txt").write_text("\n".join(lines) + "\n")
    (changed.bert / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    with pytest.raises(WeightsError, match="splits .* differently"):
        _init(changed)
    (changed.bert / "tokenizer_config.json").unlink()
    (changed.bert / "tokenizer.json").write_text("{")
    with pytest.raises(WeightsError, match="cannot be read"):
        _init(changed)


def test_published_padding_of_the_vocabulary_is_allowed_up_to_a_limit(place):
    """Weights without a tokenizer next to them; if there is one, it decides."""
    size = place.decoder.vocab_size
    bare = Checkpoint(str(place.gpt2.parent), {}, {}, False, ())
    padded = Checkpoint(str(place.gpt2), {"eos_token_id": 1}, {}, False, ())
    for rows in (size + 127, size - 3):
        init_params.check_tokenizer(bare, rows, place.decoder)
    for rows in (size + 128, size - 4):
        with pytest.raises(WeightsError, match=f"{rows} embedding rows, {size} entries"):
            init_params.check_tokenizer(bare, rows, place.decoder)
        init_params.check_tokenizer(padded, rows, place.decoder)


@pytest.mark.parametrize("pad", ["[PAD]", "<pad>", "<|pad|>"])
def test_a_gpt2_with_padding_of_its_own_starts_as_it_is(tmp_path, pad):
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>", pad])
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = tokenizers.load(tmp_path, "decoder")
    assert (loaded.vocab_size, loaded.pad_id, loaded.end_id) == (258, 257, 256)
    config = {"pad_token_id": 257, "eos_token_id": [256]}
    init_params.check_tokenizer(Checkpoint(str(tmp_path), config, {}, False, ()), 258, loaded)
    bare = Checkpoint(str(tmp_path / "bare"), config, {}, False, ())
    (tmp_path / "bare").mkdir()
    init_params.check_tokenizer(bare, 258, loaded)
    wrong = Checkpoint(str(tmp_path / "bare"), config | {"eos_token_id": [257]}, {}, False, ())
    with pytest.raises(WeightsError, match=r"eos_token_id is \[257\], there it is 256"):
        init_params.check_tokenizer(wrong, 258, loaded)


def test_weights_are_checked_before_data_is_read(changed):
    """Every tensor by name and shape, from the headers of the files alone."""
    init_params.check_backbones(changed.config)
    arrays = {n: np.asarray(t) for n, t in files.read_file(changed.gpt2 / ST).items()}
    odd = {n: a for n, a in arrays.items() if "h.1.ln_1" not in n}
    files.write_safetensors(changed.gpt2 / ST, odd, {})
    with pytest.raises(WeightsError, match=r"gpt2: tensors missing: h.1.ln_1.bias, h.1.ln_1.we"):
        init_params.check_backbones(changed.config)
    (changed.gpt2 / ST).write_bytes((changed.bert / ST).read_bytes()[:-10])
    with pytest.raises(WeightsError, match="model.safetensors: is damaged"):
        init_params.check_backbones(changed.config)


@pytest.mark.skipif(not FOLDERS.is_dir(), reason="the folders of the reference are not here")
@pytest.mark.parametrize(
    "spec, encoder, decoder",
    [
        ("lm", None, "gemma2"),
        ("optimus", "llama_rope3", "smollm"),
        *(
            pytest.param(*values, marks=pytest.mark.slow)
            for values in (
                ("optimus", "modernbert", "mistral"),
                ("optimus", "gemma3", "gemma3"),
                ("adavae", "roberta", "llama"),
                ("adavae", None, "opt"),
                ("della", "distilbert", "qwen2"),
                ("della", None, "gpt_neox"),
                ("sri:transformer", None, "qwen3"),
            )
        ),
    ],
)
def test_any_family_takes_any_folder(spec, encoder, decoder):
    """By config.json and the headers of the weights, which fit to the last tensor."""
    named = {"encoder": encoder, "decoder": decoder}
    flags = [f"init.{role}={FOLDERS / name}" for role, name in named.items() if name]
    config = start.configure(configs.load(spec), flags)
    validate(config)
    init_params.check_backbones(config)


def test_every_leaf_goes_to_its_devices_once(place, monkeypatch):
    """Nothing else of the weights is ever on a device, and no other leaf on the host."""
    mesh = meshes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    run, key = place.run(), jax.random.key(5)
    abstract = jax.eval_shape(run.model.init, key)
    where = named_leaves(rules.shardings(run.model.axes, abstract, mesh))
    leaves = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where[path])
        for path, leaf in named_leaves(abstract).items()
    }
    before = {id(array) for array in jax.live_arrays()}
    whole, placed = names.place, []

    def watched(array, like):
        assert isinstance(array, np.ndarray)
        mine = [array for array in jax.live_arrays() if id(array) not in before]
        assert sum(array.nbytes for array in mine) == sum(array.nbytes for array in placed)
        placed.append(whole(array, like))
        return placed[-1]

    monkeypatch.setattr(names, "place", watched)
    part = family("optimus").parts(run.config.model)[1]
    loaded = init_params._load(run, part, str(place.gpt2), leaves)
    assert len(placed) == len(loaded) > 10
    for path, leaf in loaded.items():
        assert leaf.sharding == where[path]
        assert {s.data.shape for s in leaf.addressable_shards} == {
            leaf.sharding.shard_shape(leaf.shape)
        }


def test_a_state_takes_over_the_parameters(place):
    """A second copy of the weights would double the memory at the start."""
    run, config = place.run(), place.config
    mesh = meshes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    compiled = program.compile_phase(run, phases.resolve(config)[0], mesh, 0)
    shapes, where = compiled.abstract.params, compiled.where.params
    params = init_params.initial_params(run, where, jax.random.key(5), shapes)
    state = named_leaves(compiled.start(params).params)
    for path, leaf in named_leaves(params).items():
        assert state[path] is leaf, path

    # Unless two of them share one, as an update donates every leaf.
    mlp = params["encoder"]["layers"] | {"mlp_norm": params["encoder"]["layers"]["attn_norm"]}
    shared = params | {"encoder": params["encoder"] | {"layers": mlp}}
    layers = compiled.start(shared).params["encoder"]["layers"]
    assert layers["mlp_norm"]["scale"] is not layers["attn_norm"]["scale"]


@pytest.mark.parametrize("trainable, rows", [((), 3), ((("/lora/", None, None, 0),), 0)])
def test_gpt2_gets_tokens_only_if_their_rows_train(place, tmp_path, trainable, rows):
    """Untrained rows are equal, and so is their share of every probability."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{line}\n" for line in TEXT))
    flags = [f"data.{split}={text}" for split in ("train", "valid", "test")]
    flags += [f"init.decoder={place.gpt2}", f"data.cache={tmp_path / 'cache'}"]
    config = start.configure(configs.load("lm:gpt2"), flags)
    config.optim.trainable = trainable
    decoder = build.open_run(config, tmp_path / "run").decoder
    assert decoder.vocab_size == place.rows + rows
    assert (decoder.end_id == decoder.pad_id) == (rows == 0)


def test_a_part_that_the_family_does_not_load(place):
    config = place.config.copy_and_resolve_references()
    config.model.family = "lm"
    other = place.run()._replace(config=config)
    with pytest.raises(ConfigError, match="init.encoder is set, but lm loads no such part"):
        init_params.initial_params(other, None, jax.random.key(0))
    config = place.config.copy_and_resolve_references()
    config.init.update(encoder="someone/not-there")
    with pytest.raises(WeightsError, match="someone/not-there: no folder here"):
        init_params.initial_params(place.run()._replace(config=config), None, jax.random.key(0))
