"""The decoding settings that text tools take as keywords."""

from typing import TypedDict


class DecodeSettings(TypedDict, total=False):
    """The fields of `jvae.decode.DecodeConfig`, which documents them."""

    method: str
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    min_length: int
    max_length: int
    room: int
    beam_width: int
    length_penalty: float
    norm_length: str
    early_stopping: str
