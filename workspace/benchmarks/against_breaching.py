"""Our attacks beside those of breaching 0.1.2 (Geiping et al., MIT licence), on its own cases, in one run.

    python workspace/benchmarks/against_breaching.py --images 30 --json FILE

breaching lives in a virtual environment of its own, which the script makes (``--venv``) and in which it then runs
itself: both tools attack the very same module, built by breaching, at the same pictures of CIFAR-10, one picture after
the other and each tool in turn, in one process with one thread. breaching is used through its own server, user and
attacker classes; nothing of it is changed but the number of iterations, which is said beside each figure (its presets
run 24,000 on a GPU). PSNR is of pictures clipped to [0, 1], against CPU seconds of the process.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
PEER = (
    "breaching==0.1.2",
    "hydra-core==1.3.*",
    "lpips==0.1.4",
    "pandas",
    "scikit-learn",
    "scikit-image",
    "safetensors",
)


@dataclass(frozen=True, slots=True)
class Contest:
    """One case of breaching with its attack and ours."""

    name: str
    network: str  # breaching's name of it
    their_attack: str  # breaching's preset
    their_iterations: int
    our_attack: str
    our_options: dict[str, Any]
    labels_known: bool
    cpu_goal: float  # our CPU seconds / theirs


CONTESTS = (
    Contest(
        "LeNet, cosine",
        "lenet_zhu",
        "invertinggradients",
        4000,
        "inverting-gradients",
        {"iterations": 800},
        True,
        1 / 5,
    ),
    Contest(
        "ConvNet, cosine", "ConvNet", "invertinggradients", 200, "inverting-gradients", {"iterations": 90}, True, 1 / 2
    ),
    Contest("LeNet, DLG with joint labels", "lenet_zhu", "deepleakage", 1200, "dlg", {"labels": "joint"}, False, 1.0),
)


@dataclass(frozen=True, slots=True)
class Bout:
    """Both tools at one picture."""

    contest: str
    image: int  # index into the test part of CIFAR-10
    our_psnr: float  # dB
    their_psnr: float
    our_cpu_seconds: float
    their_cpu_seconds: float
    our_label: bool  # found, or known
    their_label: bool


def main() -> None:
    """Make the environment, or, inside it, run the contests."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument(
        "--first", type=int, default=8, help="index of the first picture; our settings were chosen on 0 to 7"
    )
    parser.add_argument("--contest", type=int, action="append", help="0, 1 or 2; by default all")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--venv", type=Path, default=CHECKOUT / "runs" / "breaching-venv")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.inside:
        python = _environment(options.venv)
        path = {"PYTHONPATH": str(CHECKOUT / ".typing"), "OMP_NUM_THREADS": "1"}
        raise SystemExit(subprocess.call([python, __file__, "--inside", *sys.argv[1:]], env={**os.environ, **path}))
    bouts: list[Bout] = []
    for number in options.contest or range(len(CONTESTS)):
        for bout in _fight(CONTESTS[number], range(options.first, options.first + options.images)):
            bouts.append(bout)
            sys.stderr.write(f"{bout}\n")
            if options.json:
                options.json.write_text(json.dumps([asdict(b) for b in bouts], indent=1) + "\n", "utf-8")
    for line in table(bouts):
        sys.stdout.write(line + "\n")


def _environment(folder: Path) -> Path:
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        venv.create(folder, with_pip=True)
        for packages in (("torch==2.13.*",), ("torch==2.13.*", "torchvision==0.28.*", "scipy", *PEER)):
            subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        (folder / "made").touch()
    return python


def _fight(contest: Contest, indices: range) -> Iterator[Bout]:
    import torch
    from fedveil.gradient_leakage.attacks.catalogue import listed
    from fedveil.gradient_leakage.threat_model import Knowledge
    from fedveil.gradient_leakage.victim import SiteTraining, observe
    from fedveil.utils import vision

    vision.load("lpips")  # breaching imports torchvision, which needs the door beside a CPU build of torch
    breaching = importlib.import_module("breaching")

    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    images, labels = _pictures()
    attack = listed(contest.our_attack).make(**contest.our_options)
    knowledge = Knowledge(labels=contest.labels_known)
    for index in indices:
        torch.manual_seed(index)
        case, server, user, network, loss = _their_case(breaching, contest)
        mean, std = (torch.tensor(case.data[key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))
        image, label = images[index : index + 1], labels[index : index + 1]
        payload = server.distribute_payload()
        shared, _ = user.compute_local_updates(payload, {"inputs": (image - mean) / std, "labels": label})
        observation = observe(
            _normalised(network, mean, std), image, label, SiteTraining(), torch.Generator().manual_seed(index), 10
        )
        for own, their in zip(observation.gradient().values(), shared["gradients"], strict=True):
            torch.testing.assert_close(own, their, rtol=1e-3, atol=1e-6)
        seen = observation.limited_to(knowledge)
        found, our_seconds = _timed(attack, seen, knowledge, torch.Generator().manual_seed(index))
        overrides = [f"optim.max_iterations={contest.their_iterations}", "optim.callback=100000"]
        preset = breaching.get_attack_config(contest.their_attack, overrides=overrides)
        attacker = breaching.attacks.prepare_attack(
            network, loss, preset, {"device": torch.device("cpu"), "dtype": torch.float}
        )
        (theirs, _), their_seconds = _timed(attacker.reconstruct, [payload], [shared], {})
        yield Bout(
            contest.name,
            index,
            _psnr(found.images, image),
            _psnr(theirs["data"] * std + mean, image),
            our_seconds,
            their_seconds,
            bool((found.labels == label).all()) if found.labels is not None else contest.labels_known,
            bool((theirs["labels"] == label).all()),
        )


def _their_case(breaching: Any, contest: Contest) -> tuple[Any, Any, Any, Any, Any]:
    """Their server, user and network; the user takes our picture, since its own loader downloads CIFAR-10."""
    import torch

    setup = {"device": torch.device("cpu"), "dtype": torch.float}
    case = breaching.get_case_config("1_single_image_small", overrides=[f"model={contest.network}"])
    case.user.provide_labels = contest.labels_known
    network, loss = breaching.cases.construct_model(case.model, case.data, pretrained=False)
    server = breaching.cases.construct_server(network, loss, case, setup)
    network = server.vet_model(network)
    loader: Any = []
    user = breaching.cases.users.UserSingleStep(network, loss, loader, setup, idx=0, cfg_user=case.user)
    user.data_key = "inputs"
    return case, server, user, network, loss


def _normalised(network: Any, mean: Any, std: Any) -> Any:
    """The network on pictures in [0, 1]; the statistics are constants, so its parameters stay breaching's."""
    from torch import nn

    class Normalise(nn.Module):
        def forward(self, images: Any) -> Any:
            return (images - mean) / std

    return nn.Sequential(Normalise(), network).eval()


def _pictures() -> tuple[Any, Any]:
    import numpy as np
    import torch

    folder = Path(os.environ.get("FEDVEIL_DATA_DIR") or CHECKOUT.parent / "shared" / "data")
    with np.load(folder / "cifar10-subset" / "cifar10_subset.npz", allow_pickle=False) as arrays:
        images = torch.from_numpy(arrays["test_images"].transpose(0, 3, 1, 2).copy()).float() / 255
        return images, torch.from_numpy(arrays["test_labels"].astype("int64"))


def _timed(work: Callable[..., Any], *given: Any) -> tuple[Any, float]:
    start = time.process_time()
    return work(*given), time.process_time() - start


def _psnr(found: Any, truth: Any) -> float:
    import torch

    error = (
        torch.nan_to_num(found.detach().cpu().float()).clamp(0, 1).double().sub(truth.double()).square().mean().item()
    )
    return float(-10 * torch.log10(torch.tensor(max(error, 1e-20))))


def table(bouts: list[Bout]) -> Iterator[str]:
    """Markdown: mean PSNR of both with bootstrap 95 % intervals, of their difference too, and the ratio of CPU time."""
    import numpy as np

    rng = np.random.default_rng(0)

    def interval(values: Any) -> str:
        means = rng.choice(values, (2000, len(values))).mean(1)
        return f"{np.mean(values):.1f} [{np.quantile(means, 0.025):.1f}, {np.quantile(means, 0.975):.1f}]"

    yield "| case | n | ours dB | breaching dB | difference dB | ours CPU-s | breaching CPU-s | ratio | goal | labels |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for contest in CONTESTS:
        own = [bout for bout in bouts if bout.contest == contest.name]
        if not own:
            continue
        ours, theirs = np.array([b.our_psnr for b in own]), np.array([b.their_psnr for b in own])
        cpu, their_cpu = np.mean([b.our_cpu_seconds for b in own]), np.mean([b.their_cpu_seconds for b in own])
        labels = f"{sum(b.our_label for b in own)} / {sum(b.their_label for b in own)}"
        yield (
            f"| {contest.name} ({contest.their_iterations} of their iterations) | {len(own)} | {interval(ours)}"
            f" | {interval(theirs)} | {interval(ours - theirs)} | {cpu:.2f} | {their_cpu:.2f} | {cpu / their_cpu:.2f}"
            f" | {contest.cpu_goal:.2f} | {labels} |"
        )


if __name__ == "__main__":
    main()
