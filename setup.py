"""Packaging. The configs of the checkout are shipped as `jvae.configs`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+?)"', (HERE / "jvae/__init__.py").read_text(), re.M)
assert VERSION is not None
# What only pictures or only probes of latents need; `jvae/extras.py` has the same groups.
PROBES = ["scikit-learn>=1.5"]
FIGURES = ["matplotlib>=3.9", *PROBES]  # a map of latents is a t-SNE

setup(
    name="jvae",
    version=VERSION[1],
    description="Latent-variable language models in JAX: train, measure, sample and edit text VAEs",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["jvae", "jvae.*"]), "jvae.configs"],
    package_dir={"jvae.configs": "configs"},
    package_data={"jvae": ["py.typed", "shipped/**/*"]},
    entry_points={"console_scripts": ["jvae = jvae.main:main"]},
    install_requires=[
        "jax>=0.10",
        "flax>=0.12",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "ml-collections>=1.1",
        "transformers>=5.0",  # tokenizers by hub name
        "tokenizers>=0.22",
        "safetensors>=0.5",
        "tensorflow-datasets>=4.9.10",
        "importlib_resources",  # tensorflow-datasets needs it and does not say so
        "array_record>=0.8",
        "pyarrow>=16",  # Parquet files; tensorflow-datasets brings it too
        "grain>=0.2.18",
        "jaxtyping>=0.3",  # shapes in signatures
        "sacrebleu>=2.4",
        "scipy>=1.11",  # word mover's distance, matching of clusters; JAX needs it too
        "rouge-score>=0.1.2",  # and NLTK, for BLEU of single sentences
        "nltk>=3.9",
        "tensorboardX>=2.6",  # TensorBoard files without TensorFlow
        "absl-py",
        "numpy>=2.0",
    ],
    extras_require={
        "figures": FIGURES,
        "probes": PROBES,
        "test": [
            *FIGURES,
            "pytest>=8",
            "pytest-xdist>=3.6",  # tests compile on one core each
            "ruff>=0.15",
            "pyright>=1.1.400",
            "beartype>=0.20",
            "filelock>=3.12",
        ],
        "demo": ["gradio>=6"],  # python -m jvae.demo
        "wandb": ["wandb>=0.18"],  # train.wandb
        "datasets": ["datasets>=3.0"],  # data.train=hf:NAME:SPLIT
        "bertscore": ["bert-score>=0.3.13"],  # evals.bertscore; brings PyTorch
        "peer": ["torch>=2.6"],  # python -m jvae.bench --peer=torch
        "docs": ["sphinx>=8.2", "myst-parser>=4", "furo>=2024.8"],
    },
)
