import subprocess
import sys

import pytest


def run(code):
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_models_and_transforms_work_beside_any_build_of_torch():
    code = """
import torch, fedveil
from fedveil import vision
model = vision.models.resnet18(num_classes=2).eval()
image = vision.transforms.Resize(8)(torch.zeros(3, 64, 64))
print(tuple(model(torch.zeros(1, 3, 64, 64)).shape), tuple(image.shape))
assert fedveil.vision.load("torchvision.models") is vision.models
"""
    found = run(code)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split("\n")[0] == "(1, 2) (3, 8, 8)"


@pytest.mark.slow
def test_door_opens_also_where_the_compiled_operators_are_missing():
    code = """
import importlib, sys
real = importlib.import_module
def broken(name, package=None):
    if name == "torchvision" and not getattr(sys, "tried", False):
        sys.tried = True
        raise RuntimeError("operator torchvision::nms does not exist")
    return real(name, package)
importlib.import_module = broken
from fedveil.utils import vision
print(sys.tried, vision.models.resnet18(num_classes=3).fc.out_features)
"""
    found = run(code)
    if "already" in found.stderr:  # a build whose own operators can be loaded has declared nms itself
        pytest.skip("this build of torchvision declares its operators itself")
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "True 3"


def test_importing_fedveil_imports_no_torch_and_no_numpy():
    found = run("import sys, fedveil; print({'torch', 'numpy', 'torchvision'} & set(sys.modules))")
    assert found.stdout.strip() == "set()", found.stderr


def test_plans_are_importable_without_torch():
    code = "import sys; from fedveil import ArrayPlan, TrainingPlan, PlanSettings; print('torch' in sys.modules)"
    found = run(code)
    assert found.stdout.strip() == "False", found.stderr


def test_an_unknown_name_is_an_attribute_error():
    found = run("import fedveil; fedveil.nothing")
    assert "AttributeError: module 'fedveil' has no attribute 'nothing'" in found.stderr
