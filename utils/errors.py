"""Every error that may be shown to the other side.

A ``FederationError`` is expected: it says who, what was expected, what came and what to do, and holds
no secret, pixel, label or per-site value, so it may be logged and sent to a peer. A ``ValueError`` is a
mistake of our own caller and never crosses the wire. The gRPC status of each class is in
``utils/transport.py``.

    FederationError
    ├── ConfigError                 a setting is unknown, of the wrong type, or contradicts another
    ├── IdentityError               who are you?
    │   ├── JoinFileError           damaged, too old, used before
    │   ├── PassphraseError         the key of the root does not open
    │   └── NotAuthorizedError      known, but not for this
    ├── MalformedMessageError       bytes that do not say what the protocol says
    ├── ProtocolError               well-formed, but not now
    │   ├── WrongRoundError         another run, round or attempt is open
    │   │   └── RoundOverError      the round was open, and is over
    │   ├── NotInvitedError         this envoy is not in the cohort
    │   ├── DuplicateUpdateError    one update an envoy and round
    │   ├── UnknownArtifactError    no model, plan or blob with that digest
    │   ├── UnknownEntityError      no organization, user, ... of that id or name, or none that the caller may see
    │   ├── NameTakenError          another has that name
    │   ├── ChangedMeanwhileError   somebody else changed it since it was read
    │   ├── SumRefusedError         a site will not take this step of a secure sum
    │   └── SumAbortedError         a secure sum cannot go on; another attempt may
    │       └── BadShareError       a site dealt or revealed a share that is not the one it committed to
    ├── UnsendableUpdateError       what came out of training, or off the wire, is not an update
    │   ├── LayoutMismatchError     other names, shapes or order
    │   ├── LengthMismatchError     more or fewer bytes than announced
    │   ├── DigestMismatchError     the bytes are not those that were promised
    │   ├── NonFiniteUpdateError    NaN or infinity
    │   └── FailedChecksError       it failed some checks; says which
    ├── AttackError                 this attack cannot be run on this model or update
    ├── EmptyRoundError             nothing to average
    ├── PrivacyError                a data set's privacy rules do not allow it
    │   └── BudgetExhaustedError    its budget is spent
    ├── NoQuorumError               too few envoys, or too few of their updates
    ├── NotApprovedError            the site's data manager did not approve it, or not so much of it
    │   └── VetoedError             or ended it
    ├── AgreementError              a permit or an agreement between organizations does not allow it
    ├── PlanError                   the plan cannot be built, read or run
    │   └── TrainingError           the plan raised, hung or died while it trained
    ├── SandboxError                no box that the site asks for works here, so no plan runs
    ├── DatasetError                no such dataset, empty, or not what the plan declares
    ├── StorageError                the disk is full, or a state directory is not what it should be
    │   └── SuspectLogError         an audit log was changed, cut, forked, or is of another key
    └── UnreachableError            the other side does not answer
        └── TooManyCallsError       it will, once fewer calls of the same name are open
            └── LockedOutError      it will, once the wait after failed attempts is over
"""

from __future__ import annotations

__all__ = [
    "AgreementError",
    "AttackError",
    "BadShareError",
    "BudgetExhaustedError",
    "ChangedMeanwhileError",
    "ConfigError",
    "DatasetError",
    "DigestMismatchError",
    "DuplicateUpdateError",
    "EmptyRoundError",
    "FailedChecksError",
    "FederationError",
    "IdentityError",
    "JoinFileError",
    "LayoutMismatchError",
    "LengthMismatchError",
    "LockedOutError",
    "MalformedMessageError",
    "NameTakenError",
    "NoQuorumError",
    "NonFiniteUpdateError",
    "NotApprovedError",
    "NotAuthorizedError",
    "NotInvitedError",
    "PassphraseError",
    "PlanError",
    "PrivacyError",
    "ProtocolError",
    "RoundOverError",
    "SandboxError",
    "StorageError",
    "SumAbortedError",
    "SumRefusedError",
    "SuspectLogError",
    "TooManyCallsError",
    "TrainingError",
    "UnknownArtifactError",
    "UnknownEntityError",
    "UnreachableError",
    "UnsendableUpdateError",
    "VetoedError",
    "WrongRoundError",
]


class FederationError(Exception):
    """Expected, and safe to show to the other side."""


class ConfigError(FederationError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another."""


class IdentityError(FederationError):
    """The caller did not prove who it is."""


class JoinFileError(IdentityError):
    """The join file is damaged, too old, or was used before."""


class PassphraseError(IdentityError):
    """The passphrase does not open the key of the root, or none was given."""


class NotAuthorizedError(IdentityError):
    """The caller is known, but its role may not do this."""


class MalformedMessageError(FederationError):
    """Bytes that do not say what the protocol says."""


class ProtocolError(FederationError):
    """Well-formed, but not what may be said now."""


class WrongRoundError(ProtocolError):
    """Another run, round, attempt or plan is open."""


class RoundOverError(WrongRoundError):
    """The round was open, and is over: what answers it comes too late."""


class NotInvitedError(ProtocolError):
    """The envoy is not in the cohort of this round."""


class DuplicateUpdateError(ProtocolError):
    """The envoy already sent another update for this round."""


class UnknownArtifactError(ProtocolError):
    """No model, plan or blob with that digest is here."""


class UnknownEntityError(ProtocolError):
    """There is nothing of that id or name, or nothing that the caller may see."""


class NameTakenError(ProtocolError):
    """Another one has that name."""


class ChangedMeanwhileError(ProtocolError):
    """Somebody else changed it since it was read; read it again, and decide anew."""


class SumRefusedError(ProtocolError):
    """A site will not take this step of a secure sum: its own rules, or the others' signatures, forbid it."""


class SumAbortedError(ProtocolError):
    """A secure sum cannot go on; the round fails with the reason, and another attempt may follow."""


class BadShareError(SumAbortedError):
    """A site dealt or revealed something else than it had committed to and signed; ``site`` is its name."""

    def __init__(self, message: str, site: str = "") -> None:
        super().__init__(message)
        self.site = site


class UnsendableUpdateError(FederationError):
    """What came out of training, or off the wire, is not an update."""


class LayoutMismatchError(UnsendableUpdateError):
    """Other names, shapes or order than the plan's."""


class LengthMismatchError(UnsendableUpdateError):
    """More or fewer bytes than were announced."""


class DigestMismatchError(UnsendableUpdateError):
    """The bytes are not those that were promised."""


class NonFiniteUpdateError(UnsendableUpdateError):
    """The update holds NaN or infinity."""


class FailedChecksError(UnsendableUpdateError):
    """An update failed some checks; ``failed`` has the name of each with what it found, no value of the update."""

    def __init__(self, message: str, failed: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.failed = failed


class AttackError(FederationError):
    """An attack cannot be run on this model or this update; says why, and what it can be run on."""


class EmptyRoundError(FederationError):
    """There is nothing to average."""


class NoQuorumError(FederationError):
    """Too few envoys are there, or too few of their updates came in time."""


class PrivacyError(FederationError):
    """A data set's privacy rules do not allow what was asked; names public numbers alone."""


class BudgetExhaustedError(PrivacyError):
    """A data set's privacy budget does not cover the task; nothing of the data was read.

    Its text may be shown to the director. ``site_text`` is the site's own: what is left, and why it is not enough.
    """

    def __init__(self, text: str, site_text: str = "") -> None:
        super().__init__(text)
        self.site_text = site_text


class NotApprovedError(FederationError):
    """The site's data manager did not approve this, or not so much of it; names what the director knows already."""


class VetoedError(NotApprovedError):
    """The site's data manager ended it; the reason is told where the data manager said so."""


class AgreementError(FederationError):
    """A permit or an agreement between organizations does not allow it, or is not in force."""


class PlanError(FederationError):
    """The plan cannot be built, read or run."""


class TrainingError(PlanError):
    """The plan raised, hung or died while it trained."""


class SandboxError(FederationError):
    """The site has no box that meets its own minimum, so no plan runs; says what is missing and what to do."""


class DatasetError(FederationError):
    """There is no such dataset, it is empty, or it is not what the plan declares."""


class StorageError(FederationError):
    """The disk is full, or a state directory is not what it should be."""


class SuspectLogError(StorageError):
    """An audit log is not what it should be: changed, cut, forked, or of another key. Says at which entry."""


class UnreachableError(FederationError):
    """The other side does not answer."""


class TooManyCallsError(UnreachableError):
    """The caller has as many calls open as one name may; it tries again."""


class LockedOutError(TooManyCallsError):
    """Too many attempts failed; the next one is looked at after a wait."""
