"""Words of a sentence that the model does not know."""

from jvae.demo.state import Demo


def unknown(demo: Demo, *texts: str) -> list[str]:
    """The distinct words with a token that the model's tokenizer does not know, in order."""
    tokenizer = demo.vae.decoder
    words = list(dict.fromkeys(word for text in texts for word in text.split()))
    if tokenizer.unk_id is None or not words:
        return []
    ids = tokenizer.encode_batch(words)
    return [word for word, of_word in zip(words, ids, strict=True) if tokenizer.unk_id in of_word]
