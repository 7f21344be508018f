"""What a recipe may say: every name and value is one that this software has, or is refused by name."""

import dataclasses

import pytest
from fedveil.envoy.plan_loading import plan_of
from fedveil.envoy.recipes import networks, torch_steps
from fedveil.envoy.recipes.catalogue import (
    AUGMENTATIONS,
    LOSSES,
    METRICS,
    MODELS,
    OPTIMIZERS,
    check_recipe,
    completed,
    engine_of,
)
from fedveil.envoy.recipes.plans import plan_of_recipe
from fedveil.utils.data_spec import DataKind, DataSpec
from fedveil.utils.errors import FederationError, LayoutMismatchError, PlanError
from fedveil.utils.plan_bundle import PlanKind, open_bundle, write_bundle
from fedveil.utils.recipe import Choice, Recipe
from fedveil.utils.tensors import Layout, Role
from hypothesis import given
from hypothesis import strategies as st

IMAGES = DataSpec("xray", DataKind.IMAGES, (1, 16, 16), ("normal", "pneumonia"))
ROWS = DataSpec("people", DataKind.TABLE, (2,), ("well", "ill"), ("age", "weight"))


def recipe(**changes):
    whole = {
        "model": completed("model", "small-cnn", {}),
        "loss": completed("loss", "cross-entropy", {}),
        "optimizer": completed("optimizer", "sgd", {}),
        "augmentations": (),
        "metrics": ("loss",),
    }
    return Recipe(**(whole | changes))


def test_every_name_that_is_listed_is_made_by_something_and_nothing_else_is():
    assert {name for name, model in MODELS.items() if model.engine is PlanKind.TORCH} == set(networks.NETWORKS)
    assert set(LOSSES) == set(torch_steps.LOSSES)
    assert set(OPTIMIZERS) == set(torch_steps.OPTIMIZERS)
    assert set(AUGMENTATIONS) == set(torch_steps.AUGMENTATIONS)
    assert set(METRICS) == {"loss", "accuracy", "auc"}


@pytest.mark.parametrize("table", [MODELS, LOSSES, OPTIMIZERS, AUGMENTATIONS])
def test_every_default_is_within_its_range(table):
    assert [
        (n, k) for n, entry in table.items() for k, field in entry.fields.items() if field.check(field.default)
    ] == []


@pytest.mark.parametrize(
    ("changes", "data", "message"),
    [
        ({"model": Choice("small-cnm", {})}, IMAGES, r"unknown model small-cnm \(did you mean small-cnn\?\)"),
        ({"model": Choice("small-cnn", {})}, IMAGES, "says no width"),
        ({"model": Choice("small-cnn", {"width": 16, "depth": 2})}, IMAGES, "has no value depth"),
        ({"model": Choice("small-cnn", {"width": 1 << 20})}, IMAGES, "whole number from 4 to 256"),
        ({"model": Choice("small-cnn", {"width": 18})}, IMAGES, "a multiple of 4"),
        ({"model": Choice("small-cnn", {"width": True})}, IMAGES, "whole number"),
        ({"model": Choice("resnet18", {"norm": "batch"})}, IMAGES, "expected one of group, fedbn"),
        ({"loss": Choice("mse", {})}, IMAGES, "unknown loss mse"),
        ({"optimizer": Choice("sgd", {"momentum": 1.0, "weight_decay": 0.0})}, IMAGES, "from 0 to below 1"),
        ({"optimizer": Choice("sgd", {"momentum": 0, "weight_decay": 0.0})}, IMAGES, "expected a number"),
        ({"augmentations": (Choice("cut", {}),)}, IMAGES, "unknown augmentation cut"),
        ({"metrics": ("dice",)}, IMAGES, "unknown metric dice"),
        ({}, ROWS, "is for images"),
        ({}, DataSpec("xray", DataKind.IMAGES, (1, 4, 4), ("a", "b")), "at least 8 pixels"),
        ({}, DataSpec("xray", DataKind.IMAGES, (2, 16, 16), ("a", "b")), "1 or 3 channels"),
        ({}, DataSpec("xray", DataKind.IMAGES, (1, 16, 16), ("a",)), "at least two"),
        ({"metrics": ("auc",)}, DataSpec("x", DataKind.IMAGES, (1, 16, 16), ("a", "b", "c")), "has 3"),
        (
            {"model": completed("model", "logistic-regression", {}), "optimizer": completed("optimizer", "adamw", {})},
            ROWS,
            "trained by sgd",
        ),
        (
            {"model": completed("model", "logistic-regression", {"mean": (1.0, 2.0, 3.0)})},
            ROWS,
            "mean has 3 numbers, expected none or 2",
        ),
        (
            {"model": completed("model", "linear", {}), "augmentations": (completed("augmentation", "mirror", {}),)},
            ROWS,
            "augmentations are for images",
        ),
    ],
)
def test_what_is_not_listed_or_does_not_fit_is_refused_by_name(changes, data, message):
    with pytest.raises(PlanError, match=message):
        check_recipe(recipe(**changes), data)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_made_and_gives_a_logit_for_each_class(name):
    """Torch ones on two examples; the numpy one has a weight for each class."""
    import torch

    data = IMAGES if DataKind.IMAGES in MODELS[name].kinds else ROWS
    plan = plan_of_recipe(recipe(model=completed("model", name, {})), data, {})
    if MODELS[name].engine is PlanKind.ARRAY:
        assert plan.initial()["weight"].shape == (256, 2)
        return
    model = plan.model().eval()
    assert model(torch.zeros(2, *data.shape)).shape == (2, 2)


def bundle_of(folder, whole, data, layout, vector):
    write_bundle(
        folder,
        name="A",
        kind=PlanKind.DECLARATIVE,
        entry="",
        sources={},
        settings={"learning_rate": 0.5},
        layout=layout,
        initial=(vector, b""),
        data=data,
        software="0.1.0",
        recipe=whole,
    )
    return open_bundle(folder)


def test_a_site_refuses_a_name_that_its_own_software_does_not_have(tmp_path):
    """Whoever built it had a newer one, or made the manifest by hand."""
    import numpy as np

    layout = Layout.of([("w", (2,), Role.PARAMETER)])
    bundle = bundle_of(tmp_path, recipe(model=Choice("transformer", {})), IMAGES, layout, np.zeros(2, np.float32))
    with pytest.raises(PlanError, match="unknown model transformer"):
        plan_of(bundle)
    with pytest.raises(PlanError, match="unknown model transformer"):
        engine_of(bundle.manifest)


def test_weights_of_another_layout_than_the_recipes_model_are_refused(tmp_path):
    import numpy as np

    layout = Layout.of([("weight", (3, 2), Role.PARAMETER), ("bias", (2,), Role.PARAMETER)])
    whole = recipe(model=completed("model", "logistic-regression", {}))
    bundle = bundle_of(tmp_path, whole, ROWS, layout, np.zeros(8, np.float32))
    with pytest.raises(LayoutMismatchError, match="not that of its recipe's model"):
        plan_of(bundle)


def test_settings_that_are_no_settings_of_a_plan_are_refused():
    with pytest.raises(PlanError, match="unknown setting width"):
        plan_of_recipe(recipe(), IMAGES, {"width": 3})
    with pytest.raises(PlanError, match="learning_rate"):
        plan_of_recipe(recipe(), IMAGES, {"learning_rate": -1.0})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(
    st.fixed_dictionaries(dict.fromkeys(("model", "loss", "optimizer", "augmentations", "metrics"), json_values))
    | json_values
)
def test_any_values_give_a_recipe_or_one_clear_error(document):
    with pytest.raises(FederationError):
        check_recipe(Recipe.from_document(document), IMAGES)


def test_what_is_written_is_what_is_read():
    whole = recipe(
        model=completed("model", "logistic-regression", {"mean": (1.0, 2.5)}),
        augmentations=(completed("augmentation", "affine", {"scale": 0}),),
    )
    assert Recipe.from_document(whole.to_document()).to_document() == whole.to_document()
    assert dict(whole.lines())["augmentations"] == "affine (rotation 0.15, scale 0.0, shift 0.12)"
    assert dataclasses.replace(whole, augmentations=()).lines()[3] == ("augmentations", "none")


def test_two_recipes_that_differ_are_shown_otherwise():
    """Also in the last number of a long list, or far behind the point: it is what somebody approves."""
    shown = [
        dict(recipe(model=completed("model", "logistic-regression", {"mean": mean})).lines())["model"]
        for mean in ((0.1, 0.2), (0.1, 0.20000001), (0.0,) * 20, (0.0,) * 19 + (1e-9,))
    ]
    assert len(set(shown)) == 4
