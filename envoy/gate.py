"""The gate before everything that leaves: is the round's model built for an attack, and does what leaves show images?

Both are answered from what the director sent and from public canaries, never from the site's own data: a refusal that
depended on patients would itself tell of them. The leak test runs once for each plan and chain, when the first task of
it comes or when somebody at the site asks for it (``envoy plan leak-test``), and its outcome is kept.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .. import __version__
from ..gradient_leakage.defenses.chain import Chain
from ..gradient_leakage.structure import check_structure
from ..utils.errors import ConfigError, DatasetError, PlanError, StorageError
from ..utils.plan_bundle import Bundle, mapped
from ..utils.privacy.noise import NoiseSource, SystemNoise
from ..utils.tensors import Digest, canonical_json, digest_of, read_model
from ..utils.visible import visible
from .canaries import Canaries, canaries_for
from .journal import DATABASE_FILE
from .leak_test import LeakTest, measure
from .policy import ProtectionPolicy
from .protection import Closed, Gate, Off, Open, Verdict
from .sandbox.boxed import Boxed
from .sandbox.policy import SandboxPolicy
from .sandbox.sandbox import Sandbox

LOG_FILE = "leak-test.log"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS leak_test (
    plan TEXT NOT NULL, chain TEXT NOT NULL,
    setting TEXT NOT NULL,    -- digest of canaries, budget and software
    score REAL,               -- empty: not measurable
    obstacle TEXT NOT NULL,   -- why not
    cpu_seconds REAL NOT NULL,
    measured_at REAL NOT NULL,
    PRIMARY KEY (plan, chain, setting)
) STRICT, WITHOUT ROWID;
"""
_MAX_OBSTACLE = 500  # a plan's process may have worded it
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of a leak test, as it is kept."""

    score: float | None
    obstacle: str
    cpu_seconds: float

    @classmethod
    def of(cls, test: LeakTest) -> Outcome:
        """What is kept of a measurement."""
        return cls(test.score, test.obstacle, test.cpu_seconds)

    def or_worse(self, other: Outcome) -> Outcome:
        """The higher score; none where either has none. What both took together."""
        spent = self.cpu_seconds + other.cpu_seconds
        if self.score is None or other.score is None:
            return Outcome(None, self.obstacle or other.obstacle, spent)
        return Outcome(max(self.score, other.score), "", spent)

    def verdict(self, max_leakage: float) -> Verdict:
        """Open where the score is known and not above the site's bound.

        The reason is fixed text: what the child says of an obstacle was written beside the plan's code, stays here.
        """
        if self.score is None:
            return Closed("what this plan gives away behind this site's protection cannot be measured")
        if self.score > max_leakage:
            return Closed(
                "the leak test of this plan and this site's protection shows public images in what would leave"
            )
        return Open(self.score)


def canary_source(policy: ProtectionPolicy, folder: Path) -> Path | None:
    """Where the site's own public images lie; a relative path starts at the envoy's folder."""
    return None if policy.canaries is None else folder / policy.canaries


class LeakGate:
    """Keeps the gate of one site.

    Args:
        folder: the envoy's; outcomes lie in its database, what a plan prints in its ``state``.
        policy: the site's.
        sandbox: in which the plan is measured; the best that works here, and not less than Landlock, by default.
        noise: of the measured chains; the operating system's by default.
    """

    def __init__(
        self, folder: Path, policy: ProtectionPolicy, sandbox: Sandbox | None = None, noise: NoiseSource | None = None
    ) -> None:
        self._folder, self._policy = folder, policy
        self.sandbox = sandbox or Sandbox(SandboxPolicy(), folder)
        self.noise: NoiseSource = noise or SystemNoise()
        self._child: Boxed | None = None
        self._is_closed = self._is_interrupted = False

    def gate(self, plan: Bundle, model: Path, chain: Chain) -> Gate:
        """The gate of one task; what it found when it was first asked holds for the task."""
        found: list[Verdict] = []

        def ask() -> Verdict:
            if not found:
                found.append(self._asked(plan, model, chain))
            return found[0]

        return ask

    def outcome(self, plan: Bundle, chain: Chain) -> Outcome:
        """What the leak test says: kept, or measured now.

        Of a chain with an encoder the worse of two: with it, and without. Who chose the codec knows the canaries too,
        and can leave out their directions alone, so an encoder lowers no score.

        Raises:
            StorageError: it cannot be kept.
        """
        found = self._of_one(plan, chain)
        return found if chain.encoder is None else found.or_worse(self._of_one(plan, chain.without_encoder))

    def _of_one(self, plan: Bundle, chain: Chain) -> Outcome:
        try:
            canaries = canaries_for(plan.manifest.data, canary_source(self._policy, self._folder))
        except (ConfigError, DatasetError) as error:
            _log.warning("no leak test plan=%s error=%s", plan.digest, error)
            return Outcome(None, "not measurable: no canaries for this plan", 0.0)
        key = (plan.digest, chain.digest, self._setting(canaries))
        kept = self._kept(key)
        if kept is None:
            _log.info("leak test plan=%s chain=%s seconds=%g", plan.digest, chain.label, self._policy.audit_cpu_seconds)
            self._is_interrupted = False
            kept = self._measured(plan, chain, canaries)
            if not (self._is_closed or self._is_interrupted):  # a measurement that was ended says nothing
                self._keep(key, kept)
        return kept

    def keep(self, plan: Bundle, chain: Chain, canaries: Canaries, test: LeakTest) -> None:
        """Remember what somebody at the site measured, in place of what was kept.

        Raises:
            StorageError: it cannot be kept.
        """
        self._keep((plan.digest, chain.digest, self._setting(canaries)), Outcome.of(test))

    def _keep(self, key: tuple[Digest, Digest, Digest], outcome: Outcome) -> None:
        row = (*key, outcome.score, outcome.obstacle, outcome.cpu_seconds, time.time())
        with self._database() as database:
            database.execute("INSERT OR REPLACE INTO leak_test VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def close(self) -> None:
        """End a measurement that runs, and make none any more."""
        self._is_closed = True
        self.interrupt()

    def interrupt(self) -> None:
        """End a measurement that runs."""
        self._is_interrupted = True
        child = self._child
        if child is not None:
            child.kill()

    def _asked(self, plan: Bundle, model: Path, chain: Chain) -> Verdict:
        if self._policy.structure_check:
            flags = check_structure(plan.layout, read_model(plan.layout, mapped(model))[0])
            if flags:
                _log.warning("structure check plan=%s flags=%s", plan.digest, "; ".join(map(str, flags)))
                return Closed(f"the model of this round looks built for an attack (a heuristic): {flags[0]}")
        if self._policy.max_leakage is None:
            return Off()
        return self.outcome(plan, chain).verdict(self._policy.max_leakage)

    def _measured(self, plan: Bundle, chain: Chain, canaries: Canaries) -> Outcome:
        try:
            test = measure(
                plan,
                chain,
                canaries,
                cpu_seconds=self._policy.audit_cpu_seconds,
                rng=self.noise,
                log=self._folder / "state" / LOG_FILE,
                sandbox=self.sandbox,
                started=self._remember,
            )
        except (ConfigError, PlanError) as error:
            _log.warning("no leak test plan=%s error=%s", plan.digest, error)
            return Outcome(None, visible(str(error)[:_MAX_OBSTACLE]), 0.0)
        _log.info("leak test plan=%s score=%s obstacle=%s", plan.digest, test.score, test.obstacle)
        return Outcome.of(test)

    def _remember(self, child: Boxed) -> None:
        self._child = child
        if self._is_interrupted or self._is_closed:  # between two children of one measurement
            self.interrupt()

    def _setting(self, canaries: Canaries) -> Digest:
        said = ["fedveil/leak-test", canaries.digest, self._policy.audit_cpu_seconds, __version__]
        return digest_of(canonical_json(said))

    def _kept(self, key: tuple[Digest, Digest, Digest]) -> Outcome | None:
        query = "SELECT score, obstacle, cpu_seconds FROM leak_test WHERE plan = ? AND chain = ? AND setting = ?"
        with self._database() as database:
            row = database.execute(query, key).fetchone()
        return None if row is None else Outcome(*row)

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        path = self._folder / DATABASE_FILE
        try:
            with contextlib.closing(sqlite3.connect(path)) as database:
                database.execute(_SCHEMA)
                with database:
                    yield database
        except sqlite3.Error as error:
            raise StorageError(f"outcomes of leak tests cannot be kept in {path}: {error}") from error


def last_outcome(folder: Path, plan: Digest) -> tuple[Outcome, float] | None:
    """What the leak test said last of a plan, behind whatever chain, and when (seconds since 1970).

    Raises:
        StorageError: the envoy's database cannot be read.
    """
    path = folder / DATABASE_FILE
    if not path.exists():
        return None
    query = "SELECT score, obstacle, cpu_seconds, measured_at FROM leak_test WHERE plan = ? ORDER BY measured_at DESC"
    try:
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute(_SCHEMA)
            row = database.execute(query, (plan,)).fetchone()
    except sqlite3.Error as error:
        raise StorageError(f"outcomes of leak tests cannot be read in {path}: {error}") from error
    return None if row is None else (Outcome(*row[:3]), float(row[3]))
