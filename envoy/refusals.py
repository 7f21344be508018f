"""What the director is told when a task is declined: the error's class, and a reason that says nothing of the site.

Names of datasets, paths and what was found in files stay in the envoy's log. Errors of a class that is not known here
to be free of them go with a fixed sentence. So does what the plan's process says: whoever wrote the plan could put
into its words what it saw.
"""

from __future__ import annotations

import builtins
import re
from typing import Final

from ..utils import messages as m
from ..utils.errors import (
    ConfigError,
    DatasetError,
    FederationError,
    MalformedMessageError,
    NonFiniteUpdateError,
    NotApprovedError,
    PlanError,
    PrivacyError,
    ProtocolError,
    SandboxError,
    StorageError,
    TrainingError,
    UnsendableUpdateError,
)

_MAX_REASON = 500
_SPEAKABLE: Final = (
    ConfigError,
    MalformedMessageError,
    NotApprovedError,
    PrivacyError,
    ProtocolError,
    TrainingError,
    UnsendableUpdateError,
)
"""Their texts name tasks, digests, lengths, the plan's own tensors and steps: nothing of the site."""
_SENTENCES: Final[dict[type[FederationError], str]] = {
    DatasetError: "the site has no dataset that fits the plan; its envoy's log has the details",
    StorageError: "the site cannot read or keep what the task needs; its envoy's log has the details",
    PlanError: "the plan cannot be fetched, read or built at the site; its envoy's log has the details",
    SandboxError: "the site has no sandbox that meets its own minimum; its envoy's log has the details",
    FederationError: "the site cannot do the task; its envoy's log has the details",
}
WORDS_OF_THE_PLAN: Final = "its text came from the plan's process"
"""The note on such an error."""
_RAISED: Final = re.compile(
    rf"the plan raised ({'|'.join(name for name in dir(builtins) if name[0].isupper())}) in"
    r" ((backward of |optimizer step of )?train_step|train|update|evaluate|model\(\)|optimizer\(\))(?![^ ;])"
)
_OF_THE_PLAN: Final[dict[type[FederationError], str]] = {
    NonFiniteUpdateError: "training gave NaN or infinity",
    UnsendableUpdateError: "training left no update of the plan",
    FederationError: "the plan could not be carried out",
}


def refusal_of(ref: m.TaskRef, error: FederationError) -> m.Refusal:
    """What is said of an error of this site."""
    kind = type(error)
    if WORDS_OF_THE_PLAN in getattr(error, "__notes__", ()) and isinstance(error, _SPEAKABLE):
        raised = _RAISED.match(str(error))
        told = raised[0] if raised else next(_OF_THE_PLAN[one] for one in kind.__mro__ if one in _OF_THE_PLAN)
        reason = f"{told}; the site's worker log has the details"
    elif isinstance(error, _SPEAKABLE):
        reason = " ".join(str(error).split())[:_MAX_REASON]
    else:
        reason = next(_SENTENCES[one] for one in kind.__mro__ if one in _SENTENCES)
    return m.Refusal(ref, kind.__name__, reason)
