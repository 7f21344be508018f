"""Subgroups of held-out examples are read from columns, arrays and paths; a plan's process gets numbers alone."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest
from fedveil.envoy.config import load_config
from fedveil.envoy.datasets import DataOptions, DatasetRegistry, inspect, load
from fedveil.envoy.exposed_data import new_file, read_exposed, write_exposed
from fedveil.envoy.exposures import Exposures
from fedveil.envoy.orders import CellsOrder, WorkOrder, order_to_json, result_from_json, result_to_json
from fedveil.envoy.splits import Split, SplitRule
from fedveil.envoy.subgroups import NOT_GIVEN, Asked, FairnessPolicy, divided
from fedveil.utils.data_spec import DataKind, DataSpec
from fedveil.utils.errors import ConfigError
from fedveil.utils.messages import EnvoyName, RunId, TaskKind, TaskRef
from fedveil.utils.plan_bundle import open_bundle
from fedveil.workspace.plan_builder import build_plan
from PIL import Image

PARTS = ("train", "test", "test", "val")
SEXES = ("F", "M", "")
SPEC = DataSpec("people", DataKind.TABLE, (1,), ("0", "1"), ("age",))
PLAN = """
import numpy as np
from fedveil import ArrayPlan, DataKind, DataSpec, mean_of

class Counts(ArrayPlan):
    data = DataSpec("people", DataKind.TABLE, (1,), ("0", "1"), ("age",))

    def initial(self):
        return {"w": np.zeros(1, np.float32)}

    def train(self, weights, data, rng):
        return {"w": np.ones(1, np.float32)}, len(data)

    def evaluate(self, weights, data):
        return [mean_of("ill", float(data.labels.sum()), len(data))]
"""


def row(n: int) -> str:
    return f"{n},{n % 2},{PARTS[n % 4]},{SEXES[n % 3]},name-{n}\n"


@pytest.fixture
def people(tmp_path):
    path = tmp_path / "people.csv"
    path.write_text("age,ill,part,sex,name\n" + "".join(map(row, range(120))))
    options = DataOptions(("0", "1"), None, "ill", ("age",), split_column="part", rule=SplitRule(0.8, 0.1, 0.1))
    return inspect("people", path, options, 1.0)


def groups_of(inspection, spec, *subgroups, min_cell=5):
    loaded = load(inspection.record, inspection.index, spec)
    return divided(loaded, inspection.record, inspection.index, Asked(subgroups, min_cell))


def test_a_column_that_the_plan_does_not_see_divides_the_held_out_examples(people):
    divided_, scheme, left_out = groups_of(people, SPEC, "sex")
    assert left_out == ()
    assert (scheme.split, scheme.unit, scheme.num_examples) == ("test", "examples", 60)
    assert [one.value for one in scheme.attributes[0].cells] == ["F", "M", NOT_GIVEN]
    said = {0: NOT_GIVEN, 1: "F", 2: "M"}
    for age, group, split in zip(divided_.features[:, 0], divided_.groups[:, 0], divided_.split, strict=True):
        expected = [None, "F", "M", NOT_GIVEN][group]
        assert expected == (said[(int(age) + 1) % 3] if split == Split.TEST else None)


def test_an_example_that_is_trained_on_has_no_number(people):
    divided_, _, _ = groups_of(people, SPEC, "sex")
    assert not divided_.groups[divided_.split != Split.TEST].any()


def test_what_the_data_set_has_not_or_cannot_be_told_is_left_out_and_the_rest_goes_on(people):
    _, scheme, left_out = groups_of(people, SPEC, "region", "name", "sex")
    assert left_out == ("region", "name")  # no such column; a name for each
    assert [one.name for one in scheme.attributes] == ["sex"]


def test_a_pattern_divides_images_and_an_array_those_of_an_npz_file(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "xrays"
    for label in ("ill", "well"):
        (folder / "train" / label).mkdir(parents=True)
        (folder / "test" / label).mkdir(parents=True)
        for n in range(12):
            for part in ("train", "test"):
                pixels = rng.integers(0, 255, (8, 8), np.uint8)
                Image.fromarray(pixels).save(folder / part / label / f"{'FM'[n % 2]}_{n}.png")
    spec = DataSpec("xrays", DataKind.IMAGES, (1, 8, 8), ("ill", "well"))
    found = inspect("xrays", folder, DataOptions(("ill", "well")), 1.0)
    _, scheme, left_out = groups_of(found, spec, "sex=([FM])_", "nothing")
    assert left_out == ("nothing",)
    assert scheme.attributes[0].examples == (12, 12)
    images, labels = rng.integers(0, 255, (24, 8, 8), np.uint8), np.arange(24) % 2
    arrays = {f"{part}_{key}": held for part in ("train", "val", "test") for key, held in (
        ("images", images), ("labels", labels), ("sex", np.array(["F", "M", "M"] * 8)),
    )}  # fmt: skip
    np.savez(tmp_path / "xrays.npz", **arrays)
    found = inspect("xrays", tmp_path / "xrays.npz", DataOptions(("ill", "well")), 1.0)
    _, scheme, left_out = groups_of(found, spec, "sex")
    assert (scheme.attributes[0].examples, left_out) == ((8, 16), ())


def test_numbers_and_no_names_are_in_the_file_that_a_plan_is_given(people):
    divided_, _, _ = groups_of(people, SPEC, "sex")
    file = new_file()
    with os.fdopen(os.dup(file), "wb") as stream:
        write_exposed(divided_, stream)
    raw = os.pread(file, 1 << 20, 0)
    assert b"name-" not in raw
    assert NOT_GIVEN.encode() not in raw
    again = read_exposed(file)
    np.testing.assert_array_equal(again.groups, divided_.groups)
    assert list(again.cell(Split.TEST, 0, 1)) == list(np.flatnonzero(divided_.groups[:, 0] == 1))


@pytest.fixture
def order(tmp_path, people):
    registry = DatasetRegistry(tmp_path / "datasets")
    registry.add(people.record, people.index)
    source, folder = tmp_path / "counts.py", tmp_path / "bundle"
    source.write_text(PLAN)
    bundle = open_bundle(folder, build_plan(source, folder).digest)
    return WorkOrder(
        ref=TaskRef(RunId("run-1"), 1, 1, bundle.digest),
        kind=TaskKind.EVALUATE,
        seed=bytes(32),
        envoy=EnvoyName("site-a"),
        bundle=folder,
        dataset=people.record,
        index_path=registry.index_path(people.record),
        model_path=folder / "initial.safetensors",
        update_path=tmp_path / "update",
        state_folder=tmp_path / "state",
        fairness=Asked(("sex",), 10),
    ), bundle


def test_the_child_is_told_which_numbers_to_evaluate_and_no_subgroup(order):
    given, bundle = order
    exposures = Exposures()
    exposed = exposures.of(given, bundle.manifest, time.monotonic() + 60, threading.Event())
    from fedveil.envoy.trainer import _with_cells

    said = order_to_json(_with_cells(given, exposed))
    assert said["cells"] == [Split.TEST.value, ((-1, 0), (0, 1), (0, 2), (0, 3))]
    assert "sex" not in str(said)
    exposures.forget()


def test_a_result_that_names_its_own_table_is_not_believed(order):
    """The plan's code shares the process that answers: what is told is made by the envoy alone."""
    from fedveil.envoy.trainer import _told

    table = {"split": "test", "unit": "examples", "min_cell": 10, "suppressed": {}, "cells": [
        {"attribute": "", "value": "", "people": [20, 49], "metrics": [["acc", "mean", 0.5, 0.1]]},
    ]}  # fmt: skip
    result = result_from_json({"num_examples": 1, "metrics": [], "fairness": table, "cells": [[0, 1, []]]})
    assert result.fairness is not None
    assert result_from_json(result_to_json(result)) == result
    assert _told(result, None).fairness is None


def test_cells_of_an_order_come_back_as_they_were(order):
    from fedveil.envoy.orders import order_from_json

    cells = CellsOrder(2, ((-1, 0), (0, 3)))
    given, _ = order
    import dataclasses

    assert order_from_json(order_to_json(dataclasses.replace(given, cells=cells))).cells == cells


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_cell": 4},
        {"min_cell": 100_001},
        {"subgroups": ("",)},
        {"subgroups": ("sex", "sex")},
        {"subgroups": ("sex=[FM]",)},
        {"subgroups": ("sex=(",)},
        {"subgroups": ("a\nb",)},
        {"subgroups": tuple("abcdefghi")},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError):
        FairnessPolicy(**wrong)


def test_a_site_that_says_nothing_publishes_nothing(tmp_path):
    assert not load_config(tmp_path).fairness.publish
    (tmp_path / "envoy.toml").write_text('[fairness]\npublish = true\nsubgroups = ["sex"]\nmin_cell = 12\n')
    assert load_config(tmp_path).fairness == FairnessPolicy(True, ("sex",), 12)
