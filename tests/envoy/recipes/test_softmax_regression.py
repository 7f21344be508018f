"""Softmax regression: worked by torch as an oracle, and on data that it must learn."""

import numpy as np
import pytest
import torch
from fedveil.envoy.recipes.catalogue import completed
from fedveil.envoy.recipes.softmax_regression import Descent, descend, inputs, log_probabilities, logits


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.01)])
def test_it_steps_as_torchs_sgd_does(momentum, weight_decay):
    rng = np.random.default_rng(1)
    rows, labels = rng.standard_normal((9, 3), np.float32), rng.integers(0, 2, 9)
    weight, bias = rng.standard_normal((3, 2), np.float32), np.zeros(2, np.float32)
    how = Descent(3, 4, 0.1, momentum, weight_decay)
    ours = descend(rows, labels, weight, bias, how, np.random.default_rng(5))
    w, b = (torch.tensor(one, requires_grad=True) for one in (weight, bias))
    optimizer = torch.optim.SGD([w, b], lr=0.1, momentum=momentum, weight_decay=weight_decay)
    drawn = np.random.default_rng(5)
    for _ in range(3):
        order = drawn.permutation(9)
        for chosen in (order[:4], order[4:]):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(torch.tensor(rows[chosen]) @ w + b, torch.tensor(labels[chosen]))
            loss.backward()
            optimizer.step()
    assert np.allclose(ours[0], w.detach().numpy(), atol=1e-5)
    assert np.allclose(ours[1], b.detach().numpy(), atol=1e-5)
    assert not np.shares_memory(ours[0], weight)


def test_it_learns_what_a_line_divides():
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((200, 2), np.float32)
    labels = (rows @ np.array([1.0, -2.0]) > 0.3).astype(np.int64)
    zeros = np.zeros((2, 2), np.float32), np.zeros(2, np.float32)
    weight, bias = descend(rows, labels, *zeros, Descent(50, 16, 0.5, 0.0, 0.0), rng)
    assert (logits(rows, weight, bias).argmax(1) == labels).mean() > 0.97


def test_inputs_are_put_on_the_recipes_scale_and_images_become_rows():
    choice = completed("model", "logistic-regression", {"mean": (1.0, 10.0), "scale": (2, 5)})
    assert inputs(np.array([[3.0, 20.0]], np.float32), choice).tolist() == [[1.0, 2.0]]
    assert inputs(np.ones((2, 1, 3, 3), np.float32), completed("model", "logistic-regression", {})).shape == (2, 9)


def test_probabilities_of_large_scores_are_finite():
    logs = log_probabilities(np.array([[1e30, -1e30], [0.0, 0.0]], np.float32))
    assert np.isfinite(np.exp(logs)).all()
    assert np.allclose(np.exp(logs).sum(1), 1)
