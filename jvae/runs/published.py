"""Opens published models unchanged, to measure texts with: a language model, a sentence encoder."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from jvae import config as configs
from jvae.api import Params, Side
from jvae.data import tokenizers
from jvae.data.tokenizers import TextTokenizer
from jvae.errors import WeightsError
from jvae.inference import batching
from jvae.inference.text_vae import LoadedVAE
from jvae.models.reading import states
from jvae.nn import pool
from jvae.nn.attention import segments
from jvae.nn.backbone import stack_of
from jvae.nn.layers import accum_dtype
from jvae.pretrained import backbones, files, names
from jvae.pretrained.files import Checkpoint
from jvae.pretrained.names import NameTable, Vocab
from jvae.pretrained.parts import PretrainedPart
from jvae.runs import build, loading, model_names, start
from jvae.tree import named_leaves

Embed = Callable[[Sequence[str]], np.ndarray]
MODULES = ("Transformer", "Pooling", "Normalize")  # modules of sentence-transformers
ROW, SLOTS = 256, 16  # tokens and texts of a row, which without training data nothing determines


def is_published(name: str) -> bool:
    """Whether a folder or hub repository has the layout of Hugging Face and not that of jvae.

    Raises: WeightsError for a damaged config.json or a name that the hub does not know.
    """
    if not files.is_local(name) and name in model_names.shipped():
        return False
    path = files.finder(name)(files.CONFIG)
    return path is not None and "model_type" in files.read_json(path)


def fitted(
    part: PretrainedPart,
    checkpoint: Checkpoint,
    vocab: Vocab,
    target: Mapping[str, jax.ShapeDtypeStruct],
) -> tuple[NameTable, files.Tensors, dict[str, jax.ShapeDtypeStruct], names.Fit]:
    """A part's name table, its tensors, their targets, and how they fit; reads no tensor data.

    Raises: WeightsError.
    """
    table = part.table(vocab)
    tensors = backbones.canonical(part.backbone, checkpoint)
    paths = {rule.path for rule in table.rules}
    like = {path: leaf for path, leaf in target.items() if path in paths}
    return table, tensors, like, names.fit(table, tensors, like)


def language_model(name: str) -> LoadedVAE:
    """A published decoder as a language model, in float32.

    Raises: ConfigError for a folder without a decoder; DataError; WeightsError.
    """
    config, tokenizer, params = _opened("lm", "decoder", name)
    config.data.update(dec_row=ROW, slots=SLOTS)
    model, encoder = build.build_model(config), tokenizer.for_role("encoder")
    return loading.text_vae(config, model, params, encoder, tokenizer)


def sentence_encoder(name: str) -> Embed:
    """A function from texts to unit vectors (texts, width), pooled as the encoder was trained.

    Raises: ConfigError for a folder without an encoder; DataError; WeightsError,
      also for modules or a pooling that are not implemented.
    """
    _check_modules(name)
    config, tokenizer, params = _opened("optimus", "encoder", name)
    how = "first" if config.model.pool == "cls" else config.model.pool
    stack = stack_of(build.model_config(config).encoder, "model.encoder", "encode")

    @jax.jit
    def vectors(params: Params, side: Side) -> Float[Array, "e d"]:
        mask_spec = segments(side, causal=config.model.causal_encoder)
        x_btd, _ = states(stack, params, side, mask_spec=mask_spec)
        h_ed = pool.BY_NAME[how](x_btd, side, 1)
        h_ed = h_ed.astype(accum_dtype(h_ed.dtype))
        return h_ed / jnp.maximum(jnp.linalg.norm(h_ed, axis=1, keepdims=True), 1e-9)

    return partial(_embed, vectors, params["encoder"], tokenizer, stack.longest)


def _check_modules(name: str) -> None:
    """Raises: WeightsError if a sentence encoder computes more than a pooled vector."""
    find = files.finder(name)
    if (path := find(start.MODULES)) is None:
        return
    entries = files.read_json(path, list)
    types = [str(entry.get("type")) if isinstance(entry, dict) else str(entry) for entry in entries]
    if other := [kind for kind in types if kind.rpartition(".")[2] not in MODULES]:
        raise WeightsError(
            f"{name}: {start.MODULES} lists {', '.join(other)}; only {', '.join(MODULES)} are "
            "implemented, so choose another sentence encoder"
        )
    if (pooling := start.pooling(find)) not in start.POOLS:
        raise WeightsError(
            f"{name}: its pooling is {pooling or 'not stated, or a combination'}; only "
            f"{', '.join(start.POOLS)} are implemented, so choose another sentence encoder"
        )


def _embed(
    vectors: Callable[[Params, Side], Array],
    params: Params,
    tokenizer: TextTokenizer,
    longest: int,
    texts: Sequence[str],
) -> np.ndarray:
    limits = {"dec": longest}
    cut = batching.truncate(texts, None, {"dec": tokenizer}, limits)
    sentences = batching.tokenise(cut, None, {"dec": tokenizer}, limits)
    out: dict[int, np.ndarray] = {}
    for place_e, batch in batching.batches(sentences):
        part_ed = np.asarray(vectors(params, jax.tree.map(jnp.asarray, batch.dec)))
        for i, vector in zip(place_e, part_ed, strict=False):
            out[i] = vector
    return np.stack([out[i] for i in range(len(texts))])


def _opened(family: str, role: str, name: str) -> tuple[ConfigDict, TextTokenizer, Params]:
    """A config with a published part, its tokenizer, and the parameters of that part alone."""
    config = start.configure(configs.load(family), [f"init.{role}={name}"])
    tokenizer = tokenizers.open_tokenizer(name, role, add=False)  # no row is new
    (part, _), *_ = start.wanted(config)
    checkpoint = files.open_checkpoint(name)
    rows = backbones.sizes(part.backbone, checkpoint)["vocab"]
    if tokenizer.vocab_size > rows:
        raise WeightsError(
            f"{name}: {rows} embedding rows for {tokenizer.vocab_size} tokens; such a model cannot "
            "be used as published"
        )
    with config.unlocked():
        for section in ("encoder", "decoder"):
            if section in config.model:
                config.model[section].vocab = rows
                config.model[section].dropout = 0.0
    target = named_leaves(jax.eval_shape(build.build_model(config).init, jax.random.key(0)))
    table, tensors, like, _ = fitted(part, checkpoint, Vocab(rows, rows), target)
    return config, tokenizer, names.load_into(table, tensors, like)
