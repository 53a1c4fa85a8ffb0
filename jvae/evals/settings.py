"""Evaluation presets; single values can be overridden."""

import dataclasses
from typing import NamedTuple


class Preset(NamedTuple):
    """Sizes of one kind of evaluation; None means the whole split."""

    samples: int  # K of NLL_K
    sentences: int | None  # limit for all metrics that decode, drawn with the seed
    generate: int  # sentences drawn from the prior, per decoding method, over all sources
    interpolations: int  # pairs of sentences
    spot_samples: int  # K of a spot check on few sentences; 0: no spot check
    spot_sentences: int
    slerp: bool  # spherical interpolation in addition to straight lines
    greedy_columns: bool  # all text metrics for greedy samples too
    posteriors: int | None = None  # limit for KL, MI and active units, drawn with the seed


PRESETS = {
    # Runs after training; also used for the embedded corpus in RESULTS.md.
    "quick": Preset(100, 500, 1_000, 100, 0, 0, slerp=False, greedy_columns=False),
    # For the tables of RESULTS.md: many models on the same few sentences.
    "comparison": Preset(100, 250, 500, 10, 0, 0, slerp=False, greedy_columns=False),
    "full": Preset(500, None, 10_000, 200, 5_000, 200, slerp=True, greedy_columns=True),
}
# Sizes a config can override.
SIZES = ("samples", "sentences", "generate", "interpolations", "posteriors")
FEW = 10_000  # test sentences below which `full` generates half as many


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """The `evals` section of a config; a size of 0 means the preset's size."""

    preset: str = "quick"
    seed: int = 0
    samples: int = 0
    sentences: int = 0
    chunk: int = 1  # posterior samples decoded together
    generate: int = 0
    posteriors: int = 0
    outputs: int = 10  # texts per source, for models with a source side
    bertscore: str = ""  # model for BERTScore
    vectors: str = ""  # file of word vectors for the dialogue metric
    interpolations: int = 0
    interpolation_steps: int = 11
    compat: tuple[str, ...] = ()  # published estimators to print next to ours
    metrics: tuple[str, ...] = ()  # additional registered metrics to measure
    prior_samples: int = 0  # K of the bound from prior draws; 0: off
    refine_steps: int = 0  # steps of Langevin chains from the posterior; 0: off
    refine_size: float = 0.3  # step size of these chains
    features: str = ""  # .npz with features of samples and test sentences, for MAUVE
    external: str = ""  # language model that scores the samples: a run, export or published one
    similarity: str = ""  # published sentence encoder that compares reconstructions
    per_label: tuple[int, ...] = (10, 50, 100, 500, 1_000)  # sentences per label, for --mode=probe
    protocol: str = "own"  # protocol of --mode=probe
    chains: int = 200  # chains per sentence whose mean is a feature, for protocol sri
    factor: str = "action"  # embedded corpus: factor for few labels and clusters of --mode=probe

    @property
    def changed(self) -> dict[str, int]:
        """Sizes that differ from the preset."""
        return {name: getattr(self, name) for name in SIZES if getattr(self, name)}

    @property
    def label(self) -> str:
        """The preset and the sizes that override it."""
        return ", ".join([self.preset, *(f"{k}={v}" for k, v in self.changed.items())])

    def sizes(self, available: int) -> Preset:
        """The sizes for a split of `available` sentences."""
        preset = PRESETS[self.preset]
        if self.preset == "full" and available < FEW:
            preset = preset._replace(generate=preset.generate // 2)
        if self.changed and preset.spot_samples:
            preset = preset._replace(spot_samples=0)  # sizes below the preset: skip the spot check
        return preset._replace(**self.changed)
