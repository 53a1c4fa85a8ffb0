"""T5-VAE's fixture files as our models, and the two places where the original leaves float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

LANES = 8  # lanes of the machine that computed the fixtures


def _single(x):
    """Rounded to float32, in float64. A plain cast and back could be optimised away."""
    return jax.lax.reduce_precision(x, 8, 23)


def _add(parts):
    """The sum of the parts, one after the other, each rounded."""
    total = parts[0]
    for part in parts[1:]:
        total = _single(total + part)
    return total


def _along_last(x):
    return [x[..., i : i + 1] for i in range(x.shape[-1])]


@jax.custom_vjp
def _inverse_rms(x):
    return _inverse_rms_forward(x)[0]


def _inverse_rms_forward(x):
    x = _single(x)
    square = _single(jnp.square(x))
    lanes = square.reshape(*x.shape[:-1], -1, LANES)
    total = _add(_along_last(_add([lanes[..., i, :] for i in range(lanes.shape[-2])])))
    variance = _single(total / x.shape[-1])
    scale = _single(1.0 / _single(jnp.sqrt(_single(variance + float(np.float32(1e-6))))))
    return scale, (x, scale)


def _inverse_rms_backward(kept, grad):
    x, scale = kept
    cube = _single(_single(scale * scale) * scale)
    to_square = _single(-0.5 * _single(grad) * cube) / x.shape[-1]
    return (_single(to_square * (2.0 * x)),)


_inverse_rms.defvjp(_inverse_rms_forward, _inverse_rms_backward)


def _exp(x):
    """exp as SLEEF's expf has it (1.0 ULP version), of float32 values."""
    x = jnp.maximum(x, -88.0)
    quotient = jnp.round(_single(x * float(np.float32(1.4426950408889634))))
    rest = _single(x - quotient * 0.693145751953125)
    rest = _single(rest - quotient * float(np.float32(1.428606765330187045e-06)))
    total = float(np.float32(0.000198527617612853646278381))
    for factor in (
        0.00139304355252534151077271,
        0.00833336077630519866943359,
        0.0416664853692054748535156,
        0.166666671633720397949219,
        0.5,
    ):
        total = _single(total * rest + float(np.float32(factor)))
    total = _single(_single(rest * rest) * total + rest)
    return jnp.ldexp(_single(1.0 + total), quotient.astype(jnp.int32))


@jax.custom_vjp
def _softmax(x):
    return _softmax_forward(x)[0]


def _softmax_forward(x):
    x = _single(jnp.maximum(x, -1e30))
    rest = _single(x - jnp.max(x, axis=-1, keepdims=True))
    weight = jnp.where(rest < -87.0, 0.0, _exp(rest))
    weight = _single(weight * _single(1.0 / _add(_along_last(weight))))
    return weight, weight


def _softmax_backward(weight, grad):
    grad = _single(grad)
    total = _add(_along_last(_single(grad * weight)))
    return (_single(_single(grad - total) * weight),)


_softmax.defvjp(_softmax_forward, _softmax_backward)


@pytest.fixture(scope="session")
def float32_places():
    """Stand-ins of `t5_layer.inverse_rms` and `jax.nn.softmax` that round as the original does.

    Its layer norm takes the mean square, and its attention the softmax, in float32 whatever the
    model computes in. With these two, term by term in the order of torch's kernels, its float64
    numbers come out to 1e-14.
    """
    return (lambda x, eps: _inverse_rms(x)), (lambda x, axis: _softmax(x))
