"""Collectives of programs whose counts are known."""

import jax
import jax.numpy as jnp
import pytest

from jvae.parallel.collectives import collectives

HLO = """\
HloModule jit_step

%body.1 (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %g = f32[4,8]{1,0} get-tuple-element(%p), index=1
  %all-reduce.3 = f32[4,8]{1,0} all-reduce(%g), replica_groups={{0,1},{2,3}}, to_apply=%add
}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}

ENTRY %main.9 (x: f32[4,8]) -> f32[4,8] {
  %w = (s32[], f32[4,8]) while(%t), condition=%c, body=%body.1, \
backend_config={"known_trip_count":{"n":"12"}}
  %ag = (bf16[2,8]{1,0:T(8,128)}, bf16[4,8]{1,0}) all-gather-start(%x), \
replica_groups=[1,4]<=[4], dimensions={0}
  %done = bf16[4,8]{1,0} all-gather-done(%ag)
  %rs = (f32[2]{0}, f32[3]{0}) reduce-scatter(%x, %y), to_apply=%add
  %cp = f32[5]{0} collective-permute(%z), source_target_pairs={{0,1},{1,0}}
}
"""


def test_collectives_are_counted_as_often_as_they_run():
    assert collectives(HLO, devices=4) == {
        "all-reduce": (
            12,
            12 * 4 * 8 * 4,
            12 * 4 * 8 * 4,
        ),  # two devices send 2 x 1/2 of the bytes
        "all-gather": (1, 4 * 8 * 2, 4 * 8 * 2 * 3 / 4),
        "reduce-scatter": (1, (2 + 3) * 4, (2 + 3) * 4 * 3),  # the result is a fourth
        "collective-permute": (1, 5 * 4, 5 * 4),
    }


def test_a_loop_that_the_compiler_did_not_count():
    """By the end that its condition compares with, or a given number of times if it has none."""
    unknown = HLO.replace('"known_trip_count"', '"nothing"')
    assert collectives(unknown, devices=4, turns=7)["all-reduce"].count == 7
    condition = """
%c (p: (s32[], f32[4,8])) -> pred[] {
  %one = s32[]{:T(128)} constant(9)
  %all-reduce.4 = pred[] all-reduce(%done), replica_groups={{0,1,2,3}}, to_apply=%and
  ROOT %lt = pred[]{:T(512)} compare(%gte, %one), direction=LT
}
"""
    found = collectives(unknown + condition, devices=4, turns=7)
    assert found["all-reduce"].count == 9 + 9


def test_how_the_compiler_of_tpus_writes_collectives():
    mesh = "replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=4] {'axis_0','axis_2':(1)2}"
    hlo = f"""
%all-reduce-scatter.1 (a: f32[8]) -> f32[2] {{
  %r = f32[8]{{0:T(128)}} all-reduce(%a), channel_id=1, {mesh}, to_apply=%add
}}
%fused_computation.1 (a: f32[8]) -> f32[8] {{
  %g = f32[16]{{0:T(128)}} all-gather(%a), channel_id=2, replica_groups={{{{0,1}}}}
}}
%async_collective_fusion.7 (a: f32[8]) -> f32[8] {{
  %g = f32[16]{{0:T(128)}} all-gather(%a), channel_id=2, replica_groups={{{{0,1}}}}
}}
ENTRY %main (a: f32[8]) -> f32[8] {{
  %x = f32[2]{{0}} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
  %y = f32[8]{{0}} fusion(%a), kind=kCustom, calls=%fused_computation.1
  %z = f32[8]{{0}} fusion(%y), kind=kOutput, calls=%async_collective_fusion.7
}}
"""
    assert collectives(hlo, devices=8) == {
        "reduce-scatter": (1, 2 * 4, 2 * 4 * 3),  # four of the eight
        "all-gather": (1, 16 * 4, 16 * 4 / 2),  # one, begun in one fusion and ended in another
    }


@pytest.mark.multidevice
def test_collectives_of_a_compiled_program():
    """One sum over devices in a loop of known length, and one gather."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    cut, whole = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (("x",), ()))

    def program(x_id, y_i):
        def body(y_d, _):
            return jnp.sum(x_id * (x_id @ y_d)[:, None], axis=0), None

        return jax.lax.scan(body, jnp.ones(6), length=5)[0], y_i

    x_id = jax.ShapeDtypeStruct((16, 6), jnp.float32, sharding=cut)
    y_i = jax.ShapeDtypeStruct((24,), jnp.float32, sharding=cut)
    compiled = jax.jit(program, out_shardings=whole).lower(x_id, y_i).compile()
    found = collectives(compiled.as_text(), devices=8)
    assert found["all-reduce"] == (5, 5 * 6 * 4, pytest.approx(5 * 6 * 4 * 2 * 7 / 8))
    assert found["all-gather"] == (1, 24 * 4, pytest.approx(24 * 4 * 7 / 8))
