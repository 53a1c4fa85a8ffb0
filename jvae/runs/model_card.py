"""The card of an export: the README of a model in its folder and on a hub."""

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from ml_collections import ConfigDict

from jvae.api import Params
from jvae.data.tokenizers import TextTokenizer
from jvae.errors import CheckpointError, WeightsError
from jvae.runs import bases, workdir
from jvae.runs.build import build_model
from jvae.tree import sizes

FILE = "README.md"
# The same example as in README.md; a test compares them.
EXAMPLE = """\
vae = jvae.load("{name}")
z = vae.encode(["a man is playing a guitar in a park", "two girls chased a frisbee on a beach"])
vae.decode(z[:1] + 0.5 * (z[1:] - z[:1]))"""
# Repositories on the hub: user/model, or one of the first ones, which have no user.
ON_HUB = r"[\w.-]+/[\w.-]+|(distil)?(bert|gpt2|roberta|t5)(-[\w-]+)?"
# Metrics for the hub's own tables; digits stand for K.
INDEXED = r"nll_\d+|ppl_w|bpc|kl|mi|au_0\.01|exact_match|bleu"


class About(NamedTuple):
    """Information for the model card that the export does not contain."""

    name: str = ""  # title, and the name passed to `load`; empty: the config's
    license: str = ""  # as abbreviated on hubs, such as apache-2.0
    results: str = ""  # Markdown
    metrics: Mapping[str, float] = MappingProxyType({})
    data: str = ""  # data the results were measured on


def of_run(folder: Path, name: str = "", license: str = "") -> About:
    """Collects the evaluation results of a run; empty if there are none."""
    table = folder / "eval" / "test.txt"
    if not table.is_file():
        return About(name, license)
    results = f"```\n{workdir.read_text(table)}```\n"
    try:
        report = json.loads(workdir.read_text(folder / "eval" / "test.json"))
        values = {key: row["value"] for key, row in report["metrics"].items()}
        files = [Path(file["name"]).name for file in report["card"]["data"] or ()]
    except (CheckpointError, ValueError, KeyError, TypeError):  # from an older version, or damaged
        return About(name, license, results)
    metrics = {
        key: value
        for key, value in values.items()
        if re.fullmatch(INDEXED, key) and isinstance(value, int | float)
    }
    bounds = [key for key in metrics if key.startswith("nll_")]
    largest = max(bounds, key=lambda key: int(key[4:]), default="")
    metrics = {key: metrics[key] for key in metrics if key == largest or key not in bounds}
    return About(name, license, results, metrics, ", ".join(files))


def write(
    config: ConfigDict,
    tokenizers: tuple[TextTokenizer, ...],
    params: Params,
    about: About,
    sums: str,
    elsewhere: Mapping[str, str] | None = None,
) -> str:
    """The card as Markdown.

    Args:
      sums: name of the file of hashes.
      elsewhere: pretrained weights that the export leaves out, as returned by `bases.located`. The
        card names those on a hub only, as paths of this machine help nobody else.
    """
    name = about.name or config.get("name", config.model.family)
    counts = sizes(params, depth=1)
    rows = "\n".join(f"| {part} | {count:,} |" for part, count in counts.items())
    used = "\n".join(
        f"- {t.role}: {_plain(t.name)}, {t.vocab_size:,} entries, SHA-256 {t.fingerprint[:16]}"
        for t in tokenizers
    )
    left_out = _left_out(elsewhere) if elsewhere else ""
    return f"""---
{_front_matter(config, about, name)}---

# {name}

A latent-variable language model of the family {config.model.family}, trained with jvae. The whole
config, data and optimiser included, is in `config.json`.

## Use

```python
import jvae

{_example(config, name)}
```

`load` takes this folder or its name on a hub, and checks every file but this one against `{sums}`.
{left_out}
## Parameters

| part | parameters |
| --- | --- |
{rows}
| all | {sum(counts.values()):,} |

## Tokenizers

{used}

## Results

{about.results or "No results were recorded with this export."}
"""


def _left_out(elsewhere: Mapping[str, str]) -> str:
    """The paragraph on pretrained weights that an export leaves out."""
    on_hub = [name for name in elsewhere.values() if not bases.is_folder(name)]
    local = [key for key, name in elsewhere.items() if bases.is_folder(name)]
    text = "The pretrained weights are not in this folder."
    if on_hub:
        text += f" `load` reads them from {', '.join(dict.fromkeys(on_hub))}."
    if local:
        folders = ", ".join(f'"{key}": FOLDER' for key in local)
        text += (
            f" Those of the {' and the '.join(local)} were in a local folder when this model was "
            f"exported; if `load` does not find them, pass `base={{{folders}}}`."
        )
    return f"\n{text}\n"


def renamed(text: str, about: About) -> str:
    """Changes the name on a card and, if given, the licence; the rest stays as written.

    Raises: WeightsError for a card without the header that hubs read.
    """
    head, dashes, body = text.removeprefix("---\n").partition("---\n")
    if not text.startswith("---\n") or not dashes:
        raise WeightsError(f"{FILE}: does not begin with lines between two ---; write it again")
    if about.license:
        head = re.sub(r"(?m)^license:.*\n", "", head) + f"license: {_quoted(about.license)}\n"
    head = re.sub(r"(?m)^- name: .*$", lambda _: f"- name: {_quoted(about.name)}", head, count=1)
    body = re.sub(r'jvae\.load\("[^"]*"\)', f'jvae.load("{about.name}")', body)
    body = re.sub(r"(?m)^# .*$", f"# {about.name}", body, count=1)
    return f"---\n{head}---\n{body}"


def _front_matter(config: ConfigDict, about: About, name: str) -> str:
    """YAML header for hubs; JSON strings are valid YAML."""
    bases = [
        source for source in (config.init.get("encoder"), config.init.get("decoder")) if source
    ]
    hub_names = [
        source
        for source in dict.fromkeys(bases)
        if re.fullmatch(ON_HUB, source) and not Path(source).exists()  # else a local folder
    ]
    lines = ["library_name: jvae", "pipeline_tag: text-generation"]
    if about.license:
        lines.append(f"license: {_quoted(about.license)}")
    if hub_names:
        lines += ["base_model:", *(f"- {_quoted(hub_name)}" for hub_name in hub_names)]
    lines += ["tags:", "- text-generation", "- variational-autoencoder"]
    lines.append(f"- {_quoted(config.model.family)}")
    if about.metrics:
        lines += [
            *("model-index:", f"- name: {_quoted(name)}", "  results:"),
            *("  - task:", "      type: text-generation", "    dataset:"),
            *(f"      name: {_quoted(about.data or 'test')}", "      type: text", "    metrics:"),
        ]
        for metric, value in about.metrics.items():
            if not math.isfinite(value):
                continue
            lines += [f"    - type: {_quoted(metric)}", f"      value: {value:.6g}"]
    return "".join(f"{line}\n" for line in lines)


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z][\w.-]*", text) else json.dumps(text)


def _plain(name: str) -> str:
    """The name of a tokenizer; for a folder, only its last part."""
    local = name.startswith(("/", ".", "~")) or os.path.exists(name)
    return Path(name).name if local else name


def _example(config: ConfigDict, name: str) -> str:
    """Three lines that use a model; two for a language model, which has no latent."""
    if build_model(config).latent_shape[0]:
        return EXAMPLE.format(name=name)
    return f'vae = jvae.load("{name}")\nvae.sample(3)'
