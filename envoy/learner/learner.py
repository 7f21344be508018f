"""``FederatedLearner``: take part in a federation from a program or a notebook, as a site with all of a site's rules.

    learner = FederatedLearner("1f0c…", "fv_…", url="https://director.example:8443", root="root.pem")
    update = learner.train_local("chest-xray")
    learner.submit_gradients(update.gradients)

The folder is an envoy's: ``envoy plan approve``, ``envoy audit verify`` and all other commands work in it. Nothing is
trained before the site's data manager approved the proposal, and what is submitted leaves through the site's protection
and inside a secure sum, unless ``envoy.toml`` there says otherwise.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ...utils import messages as m
from ...utils.errors import FederationError, WrongRoundError
from ...utils.privacy.noising import NoisedGradients
from ...utils.tensors import Digest
from ..config import load_config
from ..enrolment import Credentials
from ..records import DataOptions
from ..registration import RestAccess
from ..renewing import connect
from . import charging, checks
from .checks import CHECKS, ValidationReport
from .downloads import DownloadedModel, downloaded, known_key
from .joining import calls_of, joined
from .local_update import LocalUpdate, values_of
from .named_update import as_vector, by_name
from .order_desk import OpenOrder
from .own_data import Given, LocalAnalysis, OwnData
from .place import checked_key, place_of
from .reports import CurrentEpsilon, PrivacyReport, current_epsilon, privacy_report
from .submissions import SubmissionReceipt, Submissions
from .working import WorkingSite, require_settings

_ORDER_SECONDS = 3600.0
_APPROVAL_SECONDS = 60.0
_RECEIPT_SECONDS = 3600.0


class FederatedLearner:
    """One site of an organization. Use it as a context manager, or ``close`` it: work goes on in a thread until then.

    Args:
        organization_id: the organization's, as the director's API says it.
        api_key: of one of its users. Once the site is registered, the folder's ``rest.json`` holds it (mode 600).
        url: of the director's REST API; else ``FEDVEIL_URL``, else what the folder remembers.
        folder: the site's; by default ``~/.fedveil/learner-ORGANIZATION``.
        name: the site's; by default made of the organization's id.
        root: the federation's root certificate, PEM or its file; else ``FEDVEIL_ROOT``, else what the folder remembers.

    Raises:
        ConfigError: something is missing or cannot be. Nothing is sent before something is asked for.
    """

    def __init__(
        self,
        organization_id: str,
        api_key: str,
        *,
        url: str | None = None,
        folder: Path | str | None = None,
        name: str | None = None,
        root: Path | str | bytes | None = None,
    ) -> None:
        key = checked_key(api_key)
        self._place = place_of(organization_id, url=url, folder=folder, name=name, root=root)
        self._access = RestAccess(self._place.url, key)
        self._calls = calls_of(self._place, self._access)
        self._data = OwnData(self._place.folder)
        self._lock, self._submitting = threading.RLock(), threading.Lock()
        self._site: WorkingSite | None = None
        self._kept: Submissions | None = None
        self._trained: dict[tuple[m.RunId, int], OpenOrder] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"FederatedLearner({self._place.organization_id!r}, name={self._place.name!r})"

    @property
    def folder(self) -> Path:
        """The site's."""
        return self._place.folder

    @property
    def name(self) -> str:
        """The site's."""
        return self._place.name

    def register(self) -> str:
        """Register this site, where it was not yet; gives its name. Everything else does so by itself.

        Raises:
            FederationError: the director refuses, or is not who the root vouches for.
        """
        return self._credentials().peer.name

    def close(self) -> None:
        """Finish what was handed in, and stop working; nothing more is asked of the director."""
        with self._lock:
            site, self._site = self._site, None
        if site is not None:
            site.close()
        self._calls.close()

    # ------------------------------------------------------------ data

    def register_data(
        self,
        name: str,
        data: Given,
        *,
        classes: Iterable[str] = (),
        patient: str | None = None,
        label: str | None = None,
        replace: bool = False,
    ) -> LocalAnalysis:
        """Record a data set under the name that plans ask for, as ``envoy data add`` does. Nothing of it is sent.

        Args:
            name: its.
            data: a path, or arrays (images, labels), which are kept in the folder, for its owner alone.
            classes: as ``envoy data add --classes``.
            patient: as ``--patient``.
            label: as ``--label``.
            replace: record a data set of that name anew.

        Raises:
            DatasetError: it is no data set, or another one has the name.
            StorageError: there is no room.
        """
        options = DataOptions(classes=tuple(classes), patient=patient, label_column=label)
        self._data.register(name, data, options, replace=replace)
        return self._data.analysis(name)

    def analyze_local_data(self, data: str | None = None) -> LocalAnalysis:
        """What a registered data set holds; of the only one, where none is named. Local: nothing is sent.

        Raises:
            DatasetError: there is none, or not just one.
        """
        return self._data.analysis(data)

    # ------------------------------------------------------------ a round

    def train_local(
        self,
        data: Given,
        epochs: int | None = None,
        batch_size: int | None = None,
        *,
        name: str | None = None,
        timeout: float = _ORDER_SECONDS,
        approval_timeout: float = _APPROVAL_SECONDS,
    ) -> LocalUpdate:
        """Wait for the round that asks this site to train, and train the approved plan, in the site's box.

        A second call in the same round gives the same update again.

        Args:
            data: the name of a registered data set, a path, or arrays (images, labels).
            epochs: must be the approved plan's, where it is given.
            batch_size: likewise.
            name: the data set's, where ``data`` is no name: by default as the approved plan calls it.
            timeout: seconds to wait for the round.
            approval_timeout: seconds that a proposal may lie here undecided.

        Raises:
            NotApprovedError: the site's data manager approved nothing; the message says what to type.
            ConfigError: other settings than the approved ones.
            DatasetError: it is no data set, or not the one that the plan reads.
            UnreachableError: no round came, or there is no line to the director.
            TrainingError: the plan failed, or the round was over before.
            FederationError: what this site or the director refused.
        """
        site = self._working()
        lying = site.order(data, name, timeout, approval_timeout)
        _, manifest = site.task(lying.ref)
        require_settings(lying, manifest, epochs, batch_size)
        result, vector = site.desk.trained(lying)
        with self._lock:
            self._trained = {(lying.ref.run, lying.ref.round): lying}  # earlier rounds are over
        return LocalUpdate(
            gradients=by_name(site.layout(lying.ref), vector),
            num_examples=result.num_examples,
            metrics=values_of(result.metrics),
            round=lying.ref.round,
            run=lying.ref.run,
            plan=lying.ref.plan,
        )

    def validate_submission(
        self,
        gradients: Mapping[str, Any],
        checks: Iterable[str] = CHECKS,
        round: int | None = None,  # noqa: A002
    ) -> ValidationReport:
        """Check gradients against the open round, and say all that is wrong; true where nothing is.

        Args:
            gradients: arrays by name.
            checks: some of ``bounds_check``, ``nan_check`` and ``privacy_check``.
            round: that they are for; the open one by default.

        Raises:
            WrongRoundError: no such round is open here.
            ConfigError: there is no such check.
        """
        site = self._working()
        return self._report(site, self._open(round), gradients, checks)

    def submit_gradients(
        self,
        gradients: Mapping[str, Any],
        round: int | None = None,  # noqa: A002 - the name that users were promised
        *,
        timeout: float = _RECEIPT_SECONDS,
    ) -> SubmissionReceipt:
        """Hand a round's answer in; it leaves through this site's protection, and in a secure sum where one was asked.

        The same gradients again give the same receipt; others for the same round are refused. Noise that was added by
        ``DifferentialPrivacy`` (Gaussian) is counted in the site's ledger, where the round has no account of its own.

        Args:
            gradients: arrays by name, as ``train_local`` gave them, or changed.
            round: that they are for; the open one by default.
            timeout: seconds to wait for the director's receipt. A secure sum waits for the other sites.

        Raises:
            WrongRoundError: no such round is open here, or nothing was trained in it.
            DuplicateUpdateError: other gradients were submitted for it.
            UnsendableUpdateError: shapes, types or numbers that are none; every fault is named. Nothing left.
            BudgetExhaustedError: the data set's privacy budget does not cover the noised update. Nothing left.
            UnreachableError: no receipt came in time; what was handed in is kept, and sent.
            FederationError: what this site or the director refused.
        """
        site, submitted = self._working(), charging.content_of(gradients)
        kept = self._submissions()
        with self._submitting:  # two threads do not hand in two answers
            lying = self._open_or_none(round)
            if lying is None:
                receipt = self._earlier(kept, submitted, round)
            else:
                receipt = self._handed_in(site, kept, lying, gradients, submitted)
        return self._receipt(site, kept, receipt, timeout)

    # ------------------------------------------------------------ what the federation has

    def download_model(self, version: str = "latest", folder: Path | str | None = None) -> DownloadedModel:
        """Fetch a model; a download that broke goes on where it stopped. Checked before it is given.

        Args:
            version: ``latest``, or as the director names it.
            folder: takes the file; the site's by default.

        Raises:
            DigestMismatchError: it is not what the director signed.
            IdentityError: the signature is not one of this federation's director.
            FederationError: what the director refuses.
        """
        place = Path(folder).expanduser() if folder is not None else self.folder / "models"
        federation = self._credentials().peer.federation
        return downloaded(self._calls, version, place, federation, known_key(self.folder))

    def get_privacy_report(self, round: int | None = None) -> PrivacyReport:  # noqa: A002 - as promised
        """What the federation says of its privacy, of one round or of all."""
        return privacy_report(self._calls, round)

    def get_current_epsilon(self, data: str | None = None) -> CurrentEpsilon:
        """What this site has spent, by its own ledger; where that has nothing, what the director was told."""
        return current_epsilon(self.folder, self._calls, self.name, data)

    # ------------------------------------------------------------

    def _credentials(self) -> Credentials:
        with self._lock:
            return joined(self._place, self._access, self._calls)

    def _working(self) -> WorkingSite:
        with self._lock:
            if self._site is None:
                self._credentials()
                config = load_config(self.folder)
                credentials, link, renewer = connect(self.folder, config, time.time())
                site = WorkingSite(self.folder, config, credentials, link, renewer, self._data)
                site.start()
                self._site = site
            return self._site

    def _submissions(self) -> Submissions:
        with self._lock:
            if self._kept is None:
                self._kept = Submissions(self.folder)
            return self._kept

    def _open_or_none(self, number: int | None) -> OpenOrder | None:
        with self._lock:
            found = [one for one in self._trained.values() if not one.is_over or one.handed_in is not None]
        return next((one for one in found if number in {None, one.ref.round} and not one.is_over), None)

    def _open(self, number: int | None) -> OpenOrder:
        lying = self._open_or_none(number)
        if lying is None:
            raise WrongRoundError(self._which_is_open(number))
        return lying

    def _which_is_open(self, number: int | None) -> str:
        with self._lock:
            site = self._site
        lying = None if site is None else site.desk.order
        asked = "no round" if number is None else f"round {number} is not one that"
        if lying is None:
            return f"{asked} was trained here and is open; train_local waits for the next"
        told = "trained" if lying.result is not None else "not trained yet: train_local trains it"
        return f"{asked} was trained here and is open: round {lying.ref.round} of {lying.ref.run} is, {told}"

    def _handed_in(
        self, site: WorkingSite, kept: Submissions, lying: OpenOrder, gradients: Mapping[str, Any], submitted: Digest
    ) -> SubmissionReceipt:
        before = kept.check(lying.ref, submitted)
        if before is not None and lying.handed_in is not None:
            return before
        layout = site.layout(lying.ref)
        task, manifest = site.task(lying.ref)
        asked = ("bounds_check", "nan_check")
        seen = charging.situation(self.folder, site.config, task, manifest)
        charging.require_sendable(checks.validated(gradients, layout, asked, checks.Bounds(), seen))
        noise = gradients.noise if isinstance(gradients, NoisedGradients) and gradients.is_unchanged else None
        charge = charging.Charge.none()
        if before is None:  # the very same once more is no second release
            charge = charging.charged(self.folder, task, manifest, noise)
        ref = lying.ref
        receipt = before or kept.keep(
            SubmissionReceipt(
                ref.run, ref.round, ref.attempt, ref.plan, submitted, epsilon=charge.epsilon, delta=charge.delta
            )
        )
        try:
            site.desk.hand_in(lying, as_vector(layout, gradients))
        except FederationError:
            kept.forget(receipt)
            raise
        charge.settle()
        return receipt

    def _earlier(self, kept: Submissions, submitted: Digest, number: int | None) -> SubmissionReceipt:
        """Nothing is open: the same once more, or too late."""
        before = kept.with_content(submitted, number)
        if before is not None:
            return before
        earlier = kept.latest(number) if number is not None else None
        if earlier is not None:
            kept.check(earlier.ref, submitted)
        raise WrongRoundError(self._which_is_open(number))

    def _receipt(
        self, site: WorkingSite, kept: Submissions, receipt: SubmissionReceipt, timeout: float
    ) -> SubmissionReceipt:
        if receipt.received_at is not None:
            return receipt
        found, at = site.desk.receipt(receipt.ref, lambda: site.is_at_work(receipt.ref), time.monotonic() + timeout)
        return kept.keep(receipt.of(found.ref, found.digest, found.length, at))

    def _report(
        self, site: WorkingSite, lying: OpenOrder, gradients: Mapping[str, Any], asked: Iterable[str]
    ) -> ValidationReport:
        task, manifest = site.task(lying.ref)
        seen = charging.situation(self.folder, site.config, task, manifest)
        measures = site.config.protection.with_asked(task) if site.config.protection is not None else None
        bounds = checks.Bounds(
            None if measures is None else measures.max_norm, () if task.sum is None else task.sum.bounds
        )
        return checks.validated(gradients, site.layout(lying.ref), asked, bounds, seen)
