"""Take part in a federation from a program: register, analyze, train, add noise, validate, submit, report, download.

    export FEDVEIL_URL=https://director.example:8443 FEDVEIL_ROOT=root.pem FEDVEIL_API_KEY=fv_...
    python -m fedveil.workspace.examples.federated_api ORGANIZATION chest-xray x.npz --classes normal,pneumonia

It needs a study that was proposed to this site, and a data manager who approved it (`envoy plan approve`) and the
roster of the secure sum (`envoy roster accept`), both in the folder that the program prints.
"""

# ruff: noqa: T201 - a program that speaks to its user

from __future__ import annotations

import argparse
import os
import sys

from fedveil import DifferentialPrivacy, FederatedLearner
from fedveil.utils.errors import FederationError


def main() -> None:
    """Run."""
    asked = _asked()
    key = os.environ["FEDVEIL_API_KEY"]
    with FederatedLearner(asked.organization, key, folder=asked.folder, name=asked.name) as learner:
        print(f"site {learner.register()}, in {learner.folder}")

        learner.register_data(asked.dataset, asked.path, classes=asked.classes, replace=asked.replace)
        analysis = learner.analyze_local_data(asked.dataset)
        print(
            f"{analysis.num_examples} examples of {len(analysis.label_distribution)} classes, seen by this site alone"
        )

        for _ in range(asked.rounds):
            update = learner.train_local(asked.dataset)
            gradients = update.gradients
            if asked.epsilon:
                privacy = DifferentialPrivacy(epsilon=asked.epsilon)
                gradients = privacy.add_noise_to_gradients(gradients, sensitivity=asked.sensitivity)
            report = learner.validate_submission(gradients, checks=["bounds_check", "nan_check", "privacy_check"])
            if not report:
                raise SystemExit(f"round {update.round} is not submitted:\n{report}")
            receipt = learner.submit_gradients(gradients, round=update.round)
            print(f"round {receipt.round}: the director has {receipt.length} bytes, {receipt.digest}")

        privacy_report = learner.get_privacy_report()
        print(f"total_epsilon {privacy_report.total_epsilon}, participants {privacy_report.participants}")
        print(f"this site: {learner.get_current_epsilon()}")
        model = learner.download_model(version="latest")
        print(f"model {model.model_version} of round {model.training_round}: {model.path}")


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("organization", help="the id of your organization at the director")
    parser.add_argument("dataset", help="as the plan calls it")
    parser.add_argument("path", help="image folder, zip, npz, CSV or Parquet")
    parser.add_argument(
        "--classes", default=[], type=lambda said: said.split(","), help="of an npz, as the plan names them: a,b"
    )
    parser.add_argument("--replace", action="store_true", help="the data set that has this name is no more")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--epsilon", type=float, default=0.0, help="of noise added by hand; 0 adds none")
    parser.add_argument(
        "--sensitivity", type=float, default=1.0, help="to which gradients are clipped before the noise"
    )
    parser.add_argument("--folder", help="of the site; by default one under your home")
    parser.add_argument("--name", help="of the site; by default made of the organization's id")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except FederationError as error:
        sys.exit(f"{type(error).__name__}: {error}")
