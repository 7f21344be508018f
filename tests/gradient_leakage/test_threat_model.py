import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from fedveil.gradient_leakage.models import build
from fedveil.gradient_leakage.threat_model import (
    Candidate,
    Granted,
    ImageDomain,
    Knowledge,
    LocalTraining,
    Reconstruction,
    SentKind,
    lowest_loss,
    require_knowledge,
)
from fedveil.gradient_leakage.victim import SiteTraining, granting, layout_of, observe
from fedveil.utils.errors import ConfigError, LayoutMismatchError, LengthMismatchError, NonFiniteUpdateError
from torch import nn

DOMAIN = ImageDomain((1, 8, 8), 2)


def seen(site=None, model=None, count=4):
    images = torch.rand((count, *DOMAIN.shape), generator=torch.Generator().manual_seed(0))
    model = model or build("mlp", DOMAIN, 0)
    return observe(model, images, torch.arange(count) % 2, site or SiteTraining(), torch.Generator().manual_seed(0), 2)


@pytest.mark.parametrize("change", [lambda sent: sent[:-4], lambda sent: sent + bytes(4), lambda _: b""])
def test_bytes_of_another_length_are_refused(change):
    whole = seen()
    with pytest.raises(LengthMismatchError, match=f"{whole.layout.size} numbers of 4 bytes"):
        replace(whole, sent=change(whole.sent))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_is_refused(value):
    whole = seen()
    numbers = whole.vector().copy()
    numbers[7] = value
    with pytest.raises(NonFiniteUpdateError, match="NaN or infinity"):
        replace(whole, sent=numbers.tobytes())


def test_what_left_is_read_from_the_payload_where_there_is_one():
    whole = seen()
    np.testing.assert_array_equal(whole.payload_vector(), whole.vector())
    code = np.array([1.0, -2.0], "<f4")
    np.testing.assert_array_equal(replace(whole, payload=code.tobytes()).payload_vector(), code)


def test_a_payload_that_no_envoy_would_send_is_refused():
    with pytest.raises(LengthMismatchError, match="3 bytes"):
        replace(seen(), payload=bytes(3))
    with pytest.raises(NonFiniteUpdateError, match="payload"):
        replace(seen(), payload=np.array([math.nan], "<f4").tobytes())


def test_an_update_of_another_models_layout_is_refused_and_the_tensor_named():
    whole = seen()
    with pytest.raises(
        LayoutMismatchError, match=r"the update holds 1\.weight \(200, 64\), the model has \(200, 144\)"
    ):
        replace(whole, model=build("mlp", ImageDomain((1, 12, 12), 2), 0))
    with pytest.raises(LayoutMismatchError, match="no such tensor"):
        replace(whole, model=nn.Sequential(nn.Linear(64, 2)))


def test_an_update_of_no_example_is_refused():
    with pytest.raises(ConfigError, match="0 examples"):
        replace(seen(), num_examples=0)


def test_float64_is_read_as_it_was_sent():
    model = build("mlp", DOMAIN, 0).double()
    double = seen(model=model)
    assert double.dtype is torch.float64
    assert len(double.sent) == 8 * double.layout.size
    assert {value.dtype for value in double.tensors().values()} == {torch.float64}


def test_tensors_are_the_vector_by_name_and_cannot_be_written_back():
    whole = seen()
    tensors = whole.tensors()
    joined = torch.cat([tensors[entry.name].flatten() for entry in whole.layout.entries]).numpy()
    np.testing.assert_array_equal(joined, whole.vector())
    tensors["1.weight"].zero_()
    assert whole.tensors()["1.weight"].any()
    assert not whole.vector().flags.writeable


def test_the_gradient_of_one_local_step_is_the_gradient():
    one_step = SiteTraining(LocalTraining(epochs=1, batch_size=4), learning_rate=0.5)
    of_update, of_gradient = seen(one_step), seen()
    assert of_update.kind is SentKind.UPDATE
    for name, value in of_gradient.gradient().items():
        torch.testing.assert_close(of_update.gradient()[name], value, rtol=1e-4, atol=1e-6)


def test_the_gradient_of_several_steps_is_their_mean():
    small = SiteTraining(LocalTraining(epochs=2, batch_size=2), learning_rate=1e-4)
    for name, value in seen().gradient().items():
        assert (seen(small).gradient()[name] - value).norm() < 0.02 * value.norm()


def test_without_the_learning_rate_only_the_direction_of_the_gradient_is_known():
    site = SiteTraining(LocalTraining(epochs=1, batch_size=4), learning_rate=0.5)
    blind = seen(site).limited_to(Knowledge())
    for name, value in seen(site).gradient().items():
        torch.testing.assert_close(blind.gradient()[name], 0.5 * value)


def test_a_gradient_holds_trained_parameters_alone():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 2))
    model[0].weight.requires_grad = False
    assert list(seen(model=model).gradient()) == ["0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]


def test_limiting_drops_every_grant_that_is_not_named():
    whole = granting(seen(SiteTraining(LocalTraining(1, 2), 0.1)), defense={})
    assert all(getattr(whole.limited_to(Knowledge()).granted, grant.name) is None for grant in fields(Granted))
    for grant in fields(Granted):
        limited = whole.limited_to(Knowledge(**{grant.name: True})).granted
        for other in fields(Granted):
            expected = getattr(whole.granted, other.name) if other.name == grant.name else None
            assert getattr(limited, other.name) is expected


def test_every_grant_is_a_boolean_of_the_knowledge():
    assert {grant.name for grant in fields(Granted)} <= {known.name for known in fields(Knowledge)}


def test_an_attack_without_its_knowledge_is_refused_with_everything_that_is_missing():
    needed = Knowledge(labels=True, learning_rate=True, malicious=True)
    require_knowledge("an attack", needed, needed)
    with pytest.raises(ConfigError, match="an attack needs labels and malicious, which"):
        require_knowledge("an attack", needed, Knowledge(learning_rate=True))


def test_the_restart_with_the_attackers_lowest_loss_is_chosen_and_nan_never_wins():
    def restart(loss):
        return Candidate(torch.full((1, 1, 2, 2), 0.5), torch.tensor([1]), loss)

    assert lowest_loss((restart(math.nan), restart(2.0), restart(1.0))).loss == 1.0
    with pytest.raises(ValueError, match="empty"):
        lowest_loss(())


def test_neither_what_an_attack_is_given_nor_what_it_hands_over_has_room_for_the_truth():
    whole = seen().limited_to(Knowledge())
    tensors = [field.name for field in fields(whole) if isinstance(getattr(whole, field.name), torch.Tensor)]
    assert tensors == []
    assert not {"truth", "original", "ground_truth"} & {
        f.name for kind in (whole, Reconstruction()) for f in fields(kind)
    }


def test_layouts_put_parameters_first():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 2))
    names = [entry.name for entry in layout_of(model).entries]
    assert names[-2:] == ["1.running_mean", "1.running_var"]
    assert len(names) == 8  # the counter is an integer, and no part of the vector
