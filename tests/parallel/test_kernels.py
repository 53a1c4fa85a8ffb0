"""Kernels of programs whose traffic is known."""

import jax
import jax.numpy as jnp
import pytest

from jvae.parallel.collectives import loop_ends
from jvae.parallel.kernels import cost, kernels, predicted_s

HLO = """\
HloModule jit_step

%slice_and_cast (p0: f32[12,4,8], p1: s32[]) -> bf16[4,8] {
  %p0 = f32[12,4,8]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %ds = f32[1,4,8]{2,1,0} dynamic-slice(%p0, %p1), dynamic_slice_sizes={1,4,8}
  %b = f32[4,8]{1,0} bitcast(%ds)
  ROOT %c = bf16[4,8]{1,0} convert(%b)
}

%put (q0: bf16[12,4,8], q1: bf16[4,8], q2: s32[]) -> bf16[12,4,8] {
  %q0 = bf16[12,4,8]{2,1,0} parameter(0)
  %q1 = bf16[4,8]{1,0} parameter(1)
  %q2 = s32[] parameter(2)
  %u = bf16[1,4,8]{2,1,0} bitcast(%q1)
  ROOT %dus = bf16[12,4,8]{2,1,0} dynamic-update-slice(%q0, %u, %q2)
}

%body (t: (s32[], f32[12,4,8], bf16[12,4,8])) -> (s32[], f32[12,4,8], bf16[12,4,8]) {
  %t = (s32[], f32[12,4,8]{2,1,0}, bf16[12,4,8]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %w = f32[12,4,8]{2,1,0} get-tuple-element(%t), index=1
  %o = bf16[12,4,8]{2,1,0} get-tuple-element(%t), index=2
  %f = bf16[4,8]{1,0} fusion(%w, %i), kind=kLoop, calls=%slice_and_cast
  %g = bf16[12,4,8]{2,1,0} fusion(%o, %f, %i), kind=kLoop, calls=%put
  ROOT %r = (s32[], f32[12,4,8]{2,1,0}, bf16[12,4,8]{2,1,0}) tuple(%i, %w, %g)
}

ENTRY %main (x: bf16[16,4], y: bf16[4,8]) -> f32[16,8] {
  %x = bf16[16,4]{1,0} parameter(0)
  %y = bf16[4,8]{1,0} parameter(1)
  %near = bf16[4,8]{1,0:T(8,128)S(1)} copy(%y)
  %loop = (s32[], f32[12,4,8]{2,1,0}, bf16[12,4,8]{2,1,0}) while(%z), condition=%cond, body=%body, \
backend_config={"known_trip_count":{"n":"12"}}
  %m = (f32[16,8]{1,0}, s8[64]{0}) custom-call(%x, %y), custom_call_target="__cublas$lt$matmul", \
backend_config={"gemm":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}
  ROOT %e = f32[16,8]{1,0} get-tuple-element(%m), index=0
}
"""


def test_traffic_of_slices_loops_and_calls():
    layer = 4 * 8
    by_name = {kernel.name: kernel for kernel in kernels(HLO)}
    assert {
        name: (kernel.times, kernel.read_bytes, kernel.written_bytes)
        for name, kernel in by_name.items()
    } == {
        "f": (12, 4 * layer + 4, 2 * layer),  # the slice, and its index
        "g": (12, 2 * layer + 4, 2 * layer),  # written in place
        "near": (1, 2 * layer, 0),  # into on-chip memory
        "m": (1, 2 * (16 * 4 + layer), 4 * 16 * 8),  # workspace is not counted
    }
    assert by_name["f"].reads[0] == ("f32[12,4,8]{2,1,0}", 4 * layer)
    total = cost(list(by_name.values()))
    assert total.kernels == 12 + 12 + 1 + 1 and total.flops == 2.0 * 16 * 8 * 4
    assert total.by_kind["__cublas$lt$matmul"][0] == 1


def test_a_pallas_kernel_moves_what_it_declares():
    """One that skips half of its operands; the others of the program keep their counts."""
    metadata = ', metadata={op_name="jit(f)/cache_step/pallas_call"}'
    target = 'custom_call_target="__gpu$xla.gpu.triton"'
    text = f"""\
ENTRY %main (x: bf16[16,4]) -> bf16[16,4] {{
  %x = bf16[16,4]{{1,0}} parameter(0)
  %y = bf16[16,4]{{1,0}} copy(%x)
  ROOT %k = bf16[16,4]{{1,0}} custom-call(%y), {target}{metadata}
}}
"""
    for declared, total in (({}, 256), ({"other": 8}, 256), ({"cache_step": 128}, 128)):
        copy, kernel = kernels(text, declared=declared)
        assert copy.read_bytes + copy.written_bytes == 256
        assert kernel.read_bytes + kernel.written_bytes == total


def test_the_end_of_an_asynchronous_pair_moves_nothing():
    program = """HloModule jit_step

ENTRY %main (x: bf16[12,4,8], y: bf16[4,8], i: s32[]) -> bf16[12,4,8] {
  %x = bf16[12,4,8]{2,1,0} parameter(0)
  %y = bf16[4,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %s = ((bf16[12,4,8], bf16[4,8], s32[]), bf16[12,4,8], s32[]) fusion-start(%x, %y, %i), \
kind=kLoop, calls=%put
  ROOT %d = bf16[12,4,8]{2,1,0} fusion-done(%s)
}
"""
    assert [kernel.name for kernel in kernels(program)] == ["s"]


def test_time_is_of_the_slower_of_products_and_traffic():
    (product,) = (kernel for kernel in kernels(HLO) if kernel.kind.startswith("__cublas"))
    moved = product.read_bytes + product.written_bytes
    slow_memory = predicted_s([product], product.flops, 1e12, 1.0, 0.5)
    assert slow_memory == pytest.approx(moved + 0.5)
    slow_units = predicted_s([product], product.flops + 7.0, 1.0, 1e12, 0.5)
    assert slow_units == pytest.approx(product.flops + 7.0 + 0.5)  # 7 of an unknown call


@pytest.mark.parametrize(
    "left, right, result, how, flops",
    [
        # As a TPU multiplies queries and keys: 8 examples and 12 heads are axes of a window.
        (
            *("8,72,12,64", "8,80,12,64", "8,12,72,80"),
            "window={size=8x12 stride=7x11 lhs_dilate=8x12}, dim_labels=0b1f_0o1i->01bf",
            2 * 8 * 12 * 72 * 80 * 64,
        ),
        ("16,4", "4,8", "16,8", "dim_labels=bf_io->bf", 2 * 16 * 4 * 8),
        # A real one: the first and last of five steps miss one of three places.
        (
            *("2,5,4", "3,4,6", "2,5,6"),
            "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f",
            2 * 2 * 6 * 4 * (5 * 3 - 2),
        ),
    ],
)
def test_convolutions_count_what_meets(left, right, result, how, flops):
    text = f"""\
ENTRY %main (x: bf16[{left}], y: bf16[{right}]) -> bf16[{result}] {{
  %x = bf16[{left}]{{0}} parameter(0)
  %y = bf16[{right}]{{0}} parameter(1)
  ROOT %c = bf16[{result}]{{0}} convolution(%x, %y), {how}
}}
"""
    (kernel,) = kernels(text)
    assert kernel.flops == flops


def test_a_condition_with_two_terms_does_not_count():
    condition = """
%plain (p: s32[]) -> pred[] {
  %nine = s32[] constant(9)
  ROOT %lt = pred[] compare(%p, %nine), direction=LT
}
%early (p: s32[]) -> pred[] {
  %eight = s32[] constant(8)
  %lt = pred[] compare(%p, %eight), direction=LT
  ROOT %a = pred[] and(%lt, %open)
}
%fused (p: s32[]) -> pred[] {
  %seven = s32[] constant(7)
  ROOT %f = pred[] fusion(%p, %seven), kind=kLoop, calls=%early
}
"""
    assert loop_ends(condition) == {"plain": 9}


def test_kernels_of_a_compiled_program():
    """Seven products in a loop, none of them unknown."""

    def program(w, x):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, length=7)[0]

    compiled = jax.jit(program).lower(jnp.ones((64, 64)), jnp.ones((32, 64))).compile()
    assert cost(kernels(compiled.as_text())).flops == 7 * 2 * 32 * 64 * 64
