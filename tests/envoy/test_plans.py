from dataclasses import dataclass, fields

import numpy as np
import pytest
from fedveil import ArrayPlan, DataKind, DataSpec, PlanSettings, TrainingPlan, steerable
from fedveil.envoy.plan_loading import plan_class_of, plan_of
from fedveil.envoy.plans import settings_of, values_of
from fedveil.utils.errors import PlanError, TrainingError
from fedveil.utils.plan_bundle import open_bundle
from fedveil.workspace.plan_builder import build_plan
from hypothesis import given
from hypothesis import strategies as st


@dataclass(frozen=True)
class Settings(PlanSettings):
    width: int = 8
    dropout: float = steerable(0.5)
    name: str = "net"
    wide: bool = False


TOY = b"""
import numpy as np
from fedveil import ArrayPlan, DataKind, DataSpec, mean_of

class Toy(ArrayPlan):
    data = DataSpec("none", DataKind.NONE)

    def initial(self):
        return {"w": np.full(3, self.settings.learning_rate, np.float32)}

    def train(self, weights, data, rng):
        return {"w": weights["w"] + 1}, 5

    def evaluate(self, weights, data):
        yield mean_of("w", weights["w"][0], 1)
"""


@given(st.integers(1, 9), st.floats(0, 1), st.text(), st.booleans())
def test_settings_come_back_as_they_were_given(width, dropout, name, wide):
    values = {"width": width, "dropout": dropout, "name": name, "wide": wide}
    settings = settings_of(Settings, values)
    assert values_of(settings) == values_of(PlanSettings()) | values


def test_a_whole_number_is_taken_for_a_fraction_and_becomes_one():
    assert type(settings_of(Settings, {"dropout": 1}).dropout) is float


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"widht": 3}, "unknown setting widht; the plan has local_epochs, .*wide"),
        ({"width": "3"}, "width: expected int, got '3'"),
        ({"width": 3.0}, "width: expected int"),
        ({"width": True}, "width: expected int"),
        ({"wide": 1}, "wide: expected bool"),
        ({"name": 1}, "name: expected str"),
        ({"dropout": True}, "dropout: expected float"),
        ({"local_epochs": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"learning_rate": 0.0}, "positive"),
        ({"learning_rate": float("nan")}, "positive"),
        ({"proximal_mu": -1.0}, "at least 0"),
    ],
)
def test_an_unknown_name_or_another_type_is_refused(values, message):
    with pytest.raises(PlanError, match=message):
        settings_of(Settings, values)


def test_a_plans_own_settings_are_declared_with_types_and_defaults():
    @dataclass(frozen=True)
    class NoType(PlanSettings):
        layers: tuple = (1, 2)

    @dataclass(frozen=True)
    class WrongDefault(PlanSettings):
        width: int = 0.5

    @dataclass(frozen=True, kw_only=True)
    class NoDefault(PlanSettings):
        width: int

    for settings, message in [(NoType, "declared as"), (WrongDefault, "expected int"), (NoDefault, "no default")]:
        with pytest.raises(PlanError, match=message):
            settings_of(settings, {})


def test_what_changes_the_layout_is_not_steerable():
    marked = {entry.name for entry in fields(Settings) if entry.metadata.get("steerable")}
    assert marked == {"local_epochs", "batch_size", "learning_rate", "proximal_mu", "dropout"}


def test_a_plan_without_data_says_what_to_add():
    class Plan(ArrayPlan):
        def initial(self):
            return {}

        def train(self, weights, data, rng):
            return weights, 1

        def evaluate(self, weights, data):
            return ()

    with pytest.raises(PlanError, match="add data = DataSpec"):
        _ = Plan().data


def test_the_plan_of_a_bundle_has_the_manifests_settings(tmp_path):
    source = tmp_path / "toy.py"
    source.write_bytes(TOY)
    build_plan(source, tmp_path / "bundle", {"learning_rate": 0.25})
    plan = plan_of(open_bundle(tmp_path / "bundle"))
    assert plan.settings.learning_rate == 0.25
    assert plan.initial()["w"].tolist() == [0.25] * 3


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (b"x = 1", PlanError, "found 0"),
        (TOY + TOY.replace(b"Toy", b"Two"), PlanError, "exactly one subclass of TrainingPlan or ArrayPlan, found 2"),
        (b"1 / 0", TrainingError, "ZeroDivisionError"),
        (b"raise SystemExit", TrainingError, "SystemExit"),
        (b"x =", TrainingError, "SyntaxError, line 1"),
        (b"\xff\xfe", TrainingError, "UnicodeDecodeError"),
        (TOY.replace(b"def evaluate", b"def evaluat"), PlanError, "does not define evaluate"),
    ],
)
def test_a_source_that_is_no_plan_is_refused(source, error, message):
    with pytest.raises(error, match=message):
        plan_class_of(source, "plan.py")


def test_a_plan_may_have_a_base_class_of_its_own():
    source = TOY + b"\nfrom fedveil import TrainingPlan\n"
    assert plan_class_of(source, "plan.py").__name__ == "Toy"
    both = TOY + TOY[TOY.index(b"class") :].replace(b"class Toy(ArrayPlan)", b"class Second(Toy)")
    assert plan_class_of(both, "plan.py", "Second").__name__ == "Second"


def test_the_data_of_a_plan_may_depend_on_its_settings():
    class Plan(TrainingPlan):
        Settings = Settings

        @property
        def data(self):
            return DataSpec("x", DataKind.IMAGES, (1, self.settings.width, self.settings.width))

        def model(self): ...

        def train_step(self, model, batch): ...

        def evaluate(self, model, loader): ...

    assert Plan(width=12).data.shape == (1, 12, 12)
    assert np.prod(Plan().data.shape) == 64
