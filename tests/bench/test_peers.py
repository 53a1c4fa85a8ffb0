"""The peer does the same arithmetic on the same sentences; skipped where PyTorch is absent."""

import dataclasses

import jax
import numpy as np
import pytest

from jvae.api import per_example
from jvae.backbones import llama
from jvae.bench import cases, decode, flops, langevin, peers, train_step
from jvae.bench.subjects import SMOLLM2
from jvae.errors import ConfigError
from jvae.latent import batch_norm
from jvae.latent.gaussian import kl_standard
from jvae.nn import lora
from jvae.pretrained import bert, gpt2, names
from jvae.pretrained.names import Vocab
from jvae.runs import build
from jvae.tree import map_named, named_leaves

SIDES = ("encoder", "decoder")

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[peer]'")


def tensors(arrays):
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def our_nats(setting, batch, z_egz):
    """-log p(x | z) of every sentence, by the model of jvae."""
    gen = setting.run.model.gen

    @jax.jit
    def nats(params, batch, z_egz):
        return -per_example(gen.log_lik(params, gen.prepare(params, batch), z_egz), batch)

    return np.asarray(nats(setting.params, batch, z_egz))[np.asarray(batch.valid_e)]


@pytest.mark.parametrize("attention, multiple", [("eager", 1), ("sdpa", 8)])
def test_the_loss_of_optimus_is_ours(optimus, attention, multiple):
    from jvae.bench import torch_models

    config, params = build.model_config(optimus.run.config), jax.device_get(optimus.params)
    rules = (
        *bert.rules(config.encoder.vocab, "bert.", "encoder", None),
        *gpt2.rules(config.decoder.vocab, "decoder.body.", "decoder"),
    )
    theirs = tensors(names.write(names.NameTable(rules), params))
    kernel_lznh = params["decoder"]["memory"]["kernel"]
    offset_zd = params["decoder"]["offset"]["kernel"]
    flat = dict(
        head=params["posterior"]["head"]["kernel"].reshape(8, -1).T,
        memory=np.moveaxis(kernel_lznh, 1, -1).reshape(-1, config.latent),
        offset=offset_zd.T,
    )
    theirs |= tensors(
        {
            "head.weight": flat["head"],
            "decoder.memory.project.weight": flat["memory"],
            "decoder.offset.weight": flat["offset"],
        }
    )
    peer = torch_models.Optimus(config, attention).eval()
    missing, unexpected = peer.load_state_dict(theirs, strict=False)
    assert not unexpected and all("position_ids" in name for name in missing)

    batch = optimus.batch("train")
    post = jax.jit(optimus.run.model.post.encode)(optimus.params, batch)
    kl_e = np.asarray(kl_standard(post).sum((1, 2)))[np.asarray(batch.valid_e)]
    expected = our_nats(optimus, batch, post.mean_egz) + kl_e
    rows = peers._rows(peers._sentences([jax.device_get(batch)]), "cpu", multiple)
    with torch.no_grad():
        actual = peer(rows, torch.zeros(len(expected), config.latent))
    assert float(actual) == pytest.approx(expected.mean(), rel=1e-5)


@pytest.fixture(scope="module")
def adapted(opened):
    """MiniLM and SmolLM2 at small sizes, with low-rank additions that are not zero."""
    bert_sizes, llama_sizes = (
        tuple(f"model.{side}.{key}={value}" for key, value in sizes.items())
        for side, sizes in dict(
            encoder=dict(layers=2, width=8, heads=2, mlp=16, init_std=0.3),
            decoder=dict(layers=2, width=8, heads=2, kv_heads=1, head=4, mlp=16, init_std=0.3),
        ).items()
    )
    ranks = ("model.encoder.lora.rank=2", "model.decoder.lora.rank=2")
    latent = ("model.latent=2",)
    absent = [change for change in SMOLLM2.changes if "vocab" not in change]
    setting = opened("optimus:smollm2", *absent, *bert_sizes, *llama_sizes, *ranks, *latent)
    rng = np.random.default_rng(0)

    def drawn(path, leaf):
        is_b = path.endswith("/b") and "/lora/" in path
        return rng.normal(size=leaf.shape).astype(np.float32) if is_b else leaf

    return setting._replace(params=map_named(drawn, jax.device_get(setting.params)))


def test_the_loss_with_a_llama_is_ours(adapted):
    """With the low-rank additions merged into the kernels."""
    from jvae.bench import torch_models

    config, params = build.model_config(adapted.run.config), adapted.params
    vocab = config.encoder.vocab, config.decoder.vocab
    merged = {side: lora.merged(params[side], getattr(config, side).lora) for side in SIDES}
    rules = bert.rules(vocab[0], "bert.", "encoder", None)
    theirs = names.write(names.NameTable(rules), merged)
    table = llama.table(
        adapted.run.config.model.decoder, Vocab(vocab[1], vocab[1]), "decoder", "decoder"
    )
    theirs |= {
        f"decoder.body.{name}": array
        for name, array in names.write(table, merged, tied=False).items()
    }
    theirs |= {
        "head.weight": params["posterior"]["head"]["kernel"].reshape(8, -1).T,
        "decoder.memory.project.weight": np.moveaxis(
            params["decoder"]["memory"]["kernel"], 1, -1
        ).reshape(-1, config.latent),
        "decoder.offset.weight": params["decoder"]["offset"]["kernel"].T,
        "decoder.scores.weight": params["decoder"]["scores"]["table"][: vocab[1]],
    }
    none = {
        side: dataclasses.replace(getattr(config, side), lora=lora.Lora(rank=0)) for side in SIDES
    }
    peer = torch_models.Optimus(dataclasses.replace(config, **none), "sdpa").eval()
    missing, unexpected = peer.load_state_dict(tensors(theirs), strict=False)
    assert not unexpected and all("position_ids" in name for name in missing)

    batch = adapted.batch("train")
    post = jax.jit(adapted.run.model.post.encode)(params, batch)
    rows = peers._rows(peers._sentences([jax.device_get(batch)]), "cpu")
    valid_e = np.asarray(batch.valid_e)
    z_egz = np.random.default_rng(1).normal(size=post.mean_egz.shape).astype(np.float32)
    with torch.no_grad():
        mean_ez, log_var_ez = peer.posterior(rows)
        nats_e = peer.decoder(torch.from_numpy(z_egz[valid_e, 0]), rows)
    np.testing.assert_allclose(nats_e.numpy(), our_nats(adapted, batch, z_egz), rtol=2e-5)
    # Ours divides the means by the root of the running variance, 1, and scales them.
    gamma = np.sqrt(2 * adapted.run.config.model.posterior.min_kl / 2 / (1 + batch_norm.EPS))
    np.testing.assert_allclose(
        gamma * mean_ez.numpy(), np.asarray(post.mean_egz)[valid_e, 0], rtol=0, atol=1e-4
    )
    np.testing.assert_allclose(
        log_var_ez.numpy(), np.asarray(post.log_var_egz)[valid_e, 0], rtol=0, atol=1e-4
    )


def test_adapters_of_the_peer_train_what_ours_train(adapted):
    from jvae.bench import torch_models

    config = build.model_config(adapted.run.config)
    peer = torch_models.Optimus(config, "sdpa")
    rows = peers._rows(peers._sentences([jax.device_get(adapted.batch("train"))]), "cpu")
    before = {name: value.detach().clone() for name, value in peer.state_dict().items()}
    update = peers._updates(peer, peer.parameters())
    update(rows, torch.zeros(len(rows.dec_et), config.latent))
    moved = {
        name for name, value in peer.state_dict().items() if not torch.equal(value, before[name])
    }
    # The first update moves b only, since a has no gradient while b is zero.
    stacks = {name for name in moved if name.startswith(("bert.", "decoder.body."))}
    assert stacks == {name for name in before if name.endswith(".b.weight")}
    assert moved - stacks == {
        "head.weight",
        *(f"decoder.{way}.weight" for way in ("memory.project", "offset", "scores")),
    }
    ours = named_leaves(adapted.params)
    trained = sum(ours[name].size for name in ours if "/lora/" in name)
    theirs = sum(
        before[name].numel() for name in before if name.endswith((".a.weight", ".b.weight"))
    )
    assert trained == theirs


def test_decoders_without_a_program_are_refused(adapted):
    with pytest.raises(ConfigError, match="only with GPT-2 without low-rank .* is llama"):
        peers.generation(adapted, 3, 5, "latents_3")


def test_a_low_rank_addition_is_added():
    from jvae.bench import torch_models

    linear = torch.nn.Linear(3, 4)
    layer = torch_models.Adapted(linear, lora.Lora(rank=2, alpha=6.0))
    with torch.no_grad():
        layer.b.weight.normal_()
        x = torch.randn(5, 3)
        expected = linear(x) + 3.0 * x @ (layer.b.weight @ layer.a.weight).T
        torch.testing.assert_close(layer(x), expected)


def test_the_lstm_of_the_chain_is_ours(sri):
    from jvae.bench import torch_models

    config, params = build.model_config(sri.run.config), jax.device_get(sri.params)["decoder"]
    cell = params["cell"]

    def gates(kernel):  # (in, 4, hidden) to (4 * hidden, in)
        return np.asarray(kernel).reshape(len(kernel), -1).T

    read = np.concatenate([gates(cell["input"]["kernel"]), gates(params["latent"]["kernel"])], 1)
    peer = torch_models.LstmDecoder(config.decoder, config.latent).eval()
    peer.load_state_dict(
        tensors(
            {
                "embed.weight": params["embed"]["table"],
                "lstm.weight_ih_l0": read,
                "lstm.weight_hh_l0": gates(cell["state"]["kernel"]),
                "lstm.bias_ih_l0": cell["input"]["bias"].reshape(-1),
                "lstm.bias_hh_l0": cell["state"]["bias"].reshape(-1),
                "first.weight": params["first"]["kernel"].T,
                "first.bias": params["first"]["bias"],
                "output.weight": params["output"]["table"],
                "output.bias": params["output"]["bias"],
            }
        )
    )
    batch = sri.batch("train")
    z_egz = np.random.default_rng(0).normal(size=(batch.id_e.shape[0], 1, 2)).astype(np.float32)
    expected = our_nats(sri, batch, z_egz)
    rows = peers._rows(peers._sentences([jax.device_get(batch)]), "cpu")
    with torch.no_grad():
        actual = peer(torch.from_numpy(z_egz[np.asarray(batch.valid_e), 0]), rows)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5)


def test_both_ways_train_on_the_sentences_of_our_batches(optimus, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)  # minutes, for nothing here
    monkeypatch.setattr(flops, "training", lambda setting, lengths: float(lengths["dec"].sum()))
    batches = train_step.call_batches(optimus)
    ours = dict(sentences=cases.sentences(*batches), tokens=cases.useful_tokens(*batches))
    original, best = train_step.beside(optimus)
    for work in (original, best):
        assert (work.sentences, work.tokens) == (ours["sentences"], ours["tokens"])
        assert work.extra["beside"] == "step"
        assert work.flops == sum(int((batch.dec.segment_bt > 0).sum()) for batch in batches)
        work.call()
    assert 0.5 < original.fill["dec"] <= best.fill["dec"] <= 1
    assert best.shapes["dec_row"] == sorted(best.shapes["dec_row"])


def test_an_update_moves_the_parameters():
    weight = torch.nn.Parameter(torch.ones(3))
    update = peers._updates(lambda x: (weight * x).sum(), [weight])
    update(torch.ones(3))
    assert torch.all(weight < 1)


def test_generate_gives_as_many_tokens_as_are_counted(optimus, monkeypatch):
    from jvae.bench.torch_models import transformers

    built = []
    generate = transformers.GPT2LMHeadModel.generate

    def kept(self, *args, **kwargs):
        built.append(generate(self, *args, **kwargs))
        return built[-1]

    monkeypatch.setattr(transformers.GPT2LMHeadModel, "generate", kept)
    work = peers.generation(optimus, 3, 5, "latents_3")
    work.call()
    assert work.tokens == 15 and built[0].shape == (3, 2 + 5)


def test_the_latent_is_read_by_generate(optimus):
    """Another key and value, other scores."""
    from jvae.bench import torch_models

    config = build.model_config(optimus.run.config)
    torch.manual_seed(0)
    model = torch_models.transformers.GPT2LMHeadModel(
        torch_models.gpt2_sizes(config.decoder, "sdpa")
    ).eval()
    memory = torch_models.Memory(config.decoder, config.latent)
    prompt_et = torch.zeros(1, 2, dtype=torch.long)
    scores = [
        model.generate(
            prompt_et,
            attention_mask=torch.ones_like(prompt_et),
            **{torch_models.cache_name(model): memory(z * 30)},
            do_sample=False,
            max_new_tokens=1,
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
        ).scores[0]
        for z in (torch.ones(1, 2), -torch.ones(1, 2))
    ]
    assert not torch.allclose(*scores)


@pytest.mark.parametrize("model", ["sri", "sri_transformer"])
def test_chains_of_the_peer(model, request, monkeypatch):
    monkeypatch.setattr(langevin, "PUBLISHED", 2)
    monkeypatch.setattr(langevin, "VOCAB", 400)
    (work,) = langevin.beside(request.getfixturevalue(model))
    work.call()
    assert work.extra["beside"] == "chain_2" and work.sentences == 2


def test_a_chain_climbs(sri):
    """Without noise the joint density of every sentence grows."""
    from jvae.bench import torch_models

    config = build.model_config(sri.run.config)
    torch.manual_seed(0)
    decoder = torch_models.LstmDecoder(config.decoder, config.latent).eval()
    rows = peers._rows(peers._sentences([jax.device_get(sri.batch("train"))]), "cpu")
    z_ez = torch.randn(len(rows.dec_et), config.latent)

    def joint(z_ez):
        with torch.no_grad():
            return -decoder(z_ez, rows) - 0.5 * (z_ez**2).sum(dim=1)

    assert torch.all(
        joint(torch_models.langevin(decoder, z_ez, rows, [0.3] * 5, 0.0)) > joint(z_ez)
    )


def test_decoding_has_a_peer(optimus, monkeypatch):
    monkeypatch.setattr(decode, "LATENTS", {"cpu": (2, 3)})
    (work,) = decode.beside(optimus)
    assert work.extra["beside"] == "latents_3" and work.sentences == 3
