"""The name table of DELLA on the original state dicts."""

import jax
import numpy as np
import pytest

from jvae.errors import WeightsError


def test_round_trip_of_the_name_table(single):
    case = single
    theirs = case.weights("param/")
    aliases = case.meta["parameter_aliases"]
    unused = case.meta["parameters_without_gradient"]
    ours = case.foreign(case.params)
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor, theirs[aliases.get(name, name)], err_msg=name)
    assert set(theirs) - set(ours) == set(unused)
    whole = theirs | {name: theirs[of] for name, of in aliases.items()}
    whole |= {name: np.zeros((1, 1)) for name in case.meta["non_parameter_state"]}
    again = case.read(whole)
    jax.tree.map(np.testing.assert_array_equal, again, case.params)
    assert {name for name in ours if name not in theirs} == {
        name for name, of in aliases.items() if of not in unused
    }


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda w: w.pop("encoder.pooling.1.attention_weights"), "missing: encoder.pooling.1"),
        (
            lambda w: w.update({"encoder.recog_network.0.weight": np.zeros((16, 41))}),
            r"recog_network.0.weight \(for .*\) has shape \(16, 41\); expected \(16, 40\)",
        ),
        (
            lambda w: w.update({"decoder.wte.weight": np.zeros(3)}),
            "decoder.wte.weight must equal encoder.wte.weight",
        ),
        (
            lambda w: w.update({"decoder.mlp_bow.bias": np.zeros(3)}),
            r"no part of the model uses: decoder.mlp_bow.bias \(3,\)",
        ),
    ],
)
@pytest.mark.parametrize("single", ["uncond"], indirect=True)
def test_weights_that_do_not_fit_are_named(single, break_it, message):
    case = single
    weights = case.weights("param/")
    break_it(weights)
    with pytest.raises(WeightsError, match=message):
        case.read(weights)
