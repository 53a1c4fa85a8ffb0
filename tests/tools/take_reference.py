"""Writes the cases of `tests/reference` from `shared/fixtures` next to the checkout:

    python -m tests.tools.take_reference

Each is what a reference implementation computed for a tiny model with random weights and random
ids: numbers, no text and no code. Of an original system one file is kept, less a remark; of a
backbone the float32 outputs are left out, as the float64 ones serve both precisions. That of BART
is written by `tests/tools/make_bart.py`.
"""

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np

from tests.tools.reference import KEPT, WHOLE

ORIGINALS = (
    "optimus/both_seed0.npz",
    "t5_vae/max_seed0.npz",
    "adavae/psa_seed0.npz",
    "della/uncond_seed0.npz",
)
BACKBONES = (
    *("llama", "qwen3", "mistral", "gemma3", "gpt_neox", "opt"),
    *("roberta", "distilbert", "modernbert"),
)
CONFIGS = ("config.json", "config_v4.json")
META = "meta/config_json"
REMARKS = ("fb_mode_2_training",)  # prose in the description of a file, which no test reads


def original(name: str) -> dict[str, np.ndarray]:
    """Arrays of an original system's file, its description without remarks."""
    arrays = dict(np.load(WHOLE / name))
    meta = {k: v for k, v in json.loads(str(arrays[META])).items() if k not in REMARKS}
    return arrays | {META: np.array(json.dumps(meta, sort_keys=True))}


def backbone(name: str) -> dict[str, np.ndarray]:
    """Arrays of a backbone's file, the float32 outputs left out."""
    stored = np.load(WHOLE / "hf_backbones" / name / "io.npz")
    return {k: stored[k] for k in stored.files if not k.startswith("f32.")}


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An .npz whose bytes depend on the arrays alone, packed as tightly as zlib can."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            data = io.BytesIO()
            np.save(data, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), data.getvalue(), zipfile.ZIP_DEFLATED)


def main() -> None:
    if not WHOLE.is_dir():
        raise SystemExit(f"{WHOLE} does not exist")
    for name in ORIGINALS:
        write(KEPT / name, original(name))
    for name in BACKBONES:
        source, target = (place / "hf_backbones" / name for place in (WHOLE, KEPT))
        shutil.rmtree(target, ignore_errors=True)
        write(target / "io.npz", backbone(name))
        for file in (*CONFIGS, "model.safetensors"):
            if (source / file).is_file():
                (target / file).write_bytes((source / file).read_bytes())


if __name__ == "__main__":
    main()
