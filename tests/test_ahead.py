"""Counting what a compiled program does, on programs whose counts are known."""

import jax
import pytest

from jvae import ahead
from jvae.errors import ConfigError

HLO = """\
HloModule jit_step

%body.1 (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %g = f32[4,8]{1,0} get-tuple-element(%p), index=1
  %all-reduce.3 = f32[4,8]{1,0} all-reduce(%g), replica_groups={{0,1}}, to_apply=%add
}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}

ENTRY %main.9 (x: f32[4,8]) -> f32[4,8] {
  %w = (s32[], f32[4,8]) while(%t), condition=%c, body=%body.1, \
backend_config={"known_trip_count":{"n":"12"}}
  %ag = (bf16[2,8]{1,0}, bf16[4,8]{1,0}) all-gather-start(%x), dimensions={0}
  %done = bf16[4,8]{1,0} all-gather-done(%ag)
  %rs = (f32[2]{0}, f32[3]{0}) reduce-scatter(%x, %y), to_apply=%add
}
"""


def test_collectives_are_counted_as_often_as_they_run():
    assert ahead.collectives(HLO) == {
        "all-reduce": (12, 12 * 4 * 8 * 4),
        "all-gather": (1, 4 * 8 * 2),
        "reduce-scatter": (1, (2 + 3) * 4),
    }


@pytest.mark.parametrize("name", ["v5e", "v99-8", "8", "v5e-", ""])
def test_a_slice_that_is_not_known(name):
    with pytest.raises(ConfigError, match="expected cpu-8, or one of v4, v5e"):
        ahead.Slice.of(name)


def test_slices_by_name():
    assert ahead.Slice.of("v5e-256") == ("v5e-256", "v5e", 256, "16x16")
    assert ahead.Slice.of("v5p:2x2x2") == ("v5p:2x2x2", "v5p", 8, "2x2x2")


@pytest.mark.multidevice
def test_without_libtpu_virtual_devices_stand_for_chips(monkeypatch):
    monkeypatch.setattr(ahead, "_has_libtpu", lambda: False)
    assert ahead._devices(ahead.Slice.of("v5e:2x4")) == jax.devices("cpu")
    with pytest.raises(ConfigError, match="too few for 256"):
        ahead._devices(ahead.Slice.of("v5e-256"))


@pytest.mark.slow
@pytest.mark.multidevice
def test_the_command(tmp_path, capsys):
    from jvae.main import main

    small = [f"--config.model.decoder.{key}=16" for key in ("width", "mlp")]
    words = ["--config=lm:tiny", *small, "--config.data.batch_rows=8", "--mode=compile"]
    assert main([*words, f"--workdir={tmp_path / 'run'}", "--topology=cpu-8"]) == 0
    shown = capsys.readouterr().out
    assert "train step: " in shown and "all-reduce" in shown and "sampler, 256 texts" in shown
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.tpu
def test_a_real_slice(tmp_path, capsys):
    pytest.importorskip("libtpu", reason="compiles for a TPU, which needs libtpu")
    from jvae.main import main

    words = ["--config=optimus:tiny", "--mode=compile", "--topology=v5e-8,v5e-256"]
    assert main([*words, "--config.data.batch_rows=64", f"--workdir={tmp_path / 'run'}"]) == 0
    assert capsys.readouterr().out.count("at least") == 4
