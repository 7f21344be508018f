import numpy as np
import pytest
from fedveil.utils.errors import PlanError, TrainingError
from fedveil.utils.plan_bundle import PlanKind, open_bundle
from fedveil.utils.tensors import Role, exact_arrays, named_views
from fedveil.workspace.plan_builder import build_plan
from safetensors.numpy import load_file

TORCH = """
from dataclasses import dataclass
import torch
from fedveil import DataKind, DataSpec, PlanSettings, TrainingPlan

@dataclass(frozen=True)
class Settings(PlanSettings):
    width: int = 4

class Net(TrainingPlan):
    Settings = Settings
    data = DataSpec("x", DataKind.TABLE, (3,), ("a", "b"))

    def model(self):
        return torch.nn.Sequential(torch.nn.Linear(3, self.settings.width), torch.nn.BatchNorm1d(self.settings.width))

    def train_step(self, model, batch):
        return model(batch[0]).sum()

    def evaluate(self, model, loader):
        return []
"""


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(TORCH)
    return path


def test_a_bundle_holds_layout_roles_and_initial_weights(source, tmp_path):
    manifest = build_plan(source, tmp_path / "out", {"width": 2})
    bundle = open_bundle(tmp_path / "out", manifest.digest)
    roles = {entry.name: entry.role for entry in bundle.layout.entries}
    assert roles == {
        "0.weight": Role.PARAMETER,
        "0.bias": Role.PARAMETER,
        "1.weight": Role.PARAMETER,
        "1.bias": Role.PARAMETER,
        "1.running_mean": Role.BUFFER,
        "1.running_var": Role.BUFFER,
    }
    vector, exact = bundle.initial()
    assert exact_arrays(bundle.layout, exact)["1.num_batches_tracked"] == 0
    assert bundle.manifest.kind is PlanKind.TORCH
    assert bundle.manifest.settings["width"] == 2
    assert bundle.blob("net.py").decode() == TORCH
    read = load_file(bundle.blob_path("initial.safetensors"))
    for entry, view in named_views(bundle.layout, vector):
        assert np.array_equal(read[entry.name], view)
    assert np.abs(read["0.weight"]).max() > 0


def test_the_same_plan_built_twice_has_the_same_digest(source, tmp_path):
    first = build_plan(source, tmp_path / "a")
    assert build_plan(source, tmp_path / "b").digest == first.digest
    assert build_plan(source, tmp_path / "c", {"width": 5}).digest != first.digest
    assert build_plan(source, tmp_path / "d", {"learning_rate": 0.5}).layout == first.layout


def test_scaffold_adds_a_control_variate_for_each_trained_parameter(source, tmp_path):
    build_plan(source, tmp_path / "out", {"scaffold": True})
    bundle = open_bundle(tmp_path / "out")
    controls = bundle.layout.slice_of(Role.CONTROL)
    parameters = bundle.layout.slice_of(Role.PARAMETER)
    assert controls.stop - controls.start == parameters.stop - parameters.start
    assert not bundle.initial()[0][controls].any()


def test_a_float64_tensor_is_refused_by_name(source, tmp_path):
    source.write_text(TORCH.replace("BatchNorm1d(self.settings.width)", "BatchNorm1d(self.settings.width).double()"))
    with pytest.raises(PlanError, match=r"1\.weight is float64"):
        build_plan(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ("return torch.nn.Sequential(", "raise KeyError(", TrainingError, r"KeyError in model\(\)"),
        ("width: int = 4", "width: int = 'x'", PlanError, "width: expected int"),
        ("class Net(TrainingPlan)", "class Net", PlanError, "found 0"),
    ],
)
def test_a_plan_that_cannot_be_built_says_why(source, tmp_path, old, new, error, message):
    source.write_text(TORCH.replace(old, new))
    with pytest.raises(error, match=message):
        build_plan(source, tmp_path / "out")


def test_a_file_that_is_not_there_and_a_setting_that_is_unknown(source, tmp_path):
    with pytest.raises(PlanError, match="cannot be read"):
        build_plan(tmp_path / "no.py", tmp_path / "out")
    with pytest.raises(PlanError, match="unknown setting depth"):
        build_plan(source, tmp_path / "out", {"depth": 3})
