"""The peer does the same arithmetic on the same sentences; skipped where PyTorch is absent."""

import jax
import numpy as np
import pytest

from jvae.api import per_example
from jvae.bench import cases, decode, flops, langevin, peers, train_step
from jvae.latent.gaussian import kl_standard
from jvae.pretrained import bert, gpt2, names
from jvae.runs import build

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
        *gpt2.rules(config.decoder.vocab, "decoder.gpt2.", "decoder"),
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
            past_key_values=memory(z * 30),
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
