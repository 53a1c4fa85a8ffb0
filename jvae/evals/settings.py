"""What an evaluation measures, by the name of a preset; single values can be set on top of it."""

import dataclasses
from typing import NamedTuple


class Preset(NamedTuple):
    """Sizes of one kind of evaluation; None is the whole split."""

    samples: int  # K of NLL_K
    sentences: int | None  # a seeded draw of at most so many, for all that decodes
    generate: int  # sentences drawn from the prior, for each way of decoding and all sources
    interpolations: int  # pairs of sentences
    spot_samples: int  # K of a spot check on few sentences; 0: none
    spot_sentences: int
    slerp: bool  # arcs beside straight lines
    greedy_columns: bool  # all text metrics of greedy samples too


PRESETS = {
    # Ends a training run; the embedded corpus of RESULTS.md was measured so.
    "quick": Preset(100, 500, 1_000, 100, 0, 0, slerp=False, greedy_columns=False),
    # The tables of RESULTS.md: many models on the same few sentences.
    "comparison": Preset(100, 250, 500, 10, 0, 0, slerp=False, greedy_columns=False),
    "headline": Preset(500, None, 10_000, 200, 5_000, 200, slerp=True, greedy_columns=True),
}
SIZES = ("samples", "sentences", "generate", "interpolations")  # that a config sets one by one
FEW = 10_000  # test sentences below which `headline` generates half as many


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """The `evals` section of a config; a size of 0 is that of the preset."""

    preset: str = "quick"
    seed: int = 0
    samples: int = 0
    sentences: int = 0
    chunk: int = 1  # posterior samples decoded together
    generate: int = 0
    outputs: int = 10  # texts of each source, of models that read one
    bertscore: str = ""  # model of BERTScore
    vectors: str = ""  # file of word vectors, for metric dialogue
    interpolations: int = 0
    interpolation_steps: int = 11
    compat: tuple[str, ...] = ()  # published estimators to print beside ours
    metrics: tuple[str, ...] = ()  # registered metrics to measure besides
    prior_samples: int = 0  # K of a bound by draws from the prior alone; 0: no such rows
    refine_steps: int = 0  # of Langevin chains that start at the posterior; 0: no such rows
    refine_size: float = 0.3  # step size of these chains
    features: str = ""  # .npz of features of samples and test sentences, for MAUVE
    external: str = ""  # run or export of a language model that scores the samples
    per_label: tuple[int, ...] = (10, 50, 100, 500, 1_000)  # sentences of each, of --mode=probe
    protocol: str = "own"  # of --mode=probe
    factor: str = "action"  # of the embedded corpus, for few labels and clusters of --mode=probe

    @property
    def changed(self) -> dict[str, int]:
        """Sizes that are not those of the preset."""
        return {name: getattr(self, name) for name in SIZES if getattr(self, name)}

    @property
    def label(self) -> str:
        """The preset and what was set on top of it."""
        return ", ".join([self.preset, *(f"{k}={v}" for k, v in self.changed.items())])

    def sizes(self, available: int) -> Preset:
        """The sizes for a split of `available` sentences."""
        preset = PRESETS[self.preset]
        if self.preset == "headline" and available < FEW:
            preset = preset._replace(generate=preset.generate // 2)
        if self.changed and preset.spot_samples:
            preset = preset._replace(spot_samples=0)  # a smaller run than asked for by name
        return preset._replace(**self.changed)
