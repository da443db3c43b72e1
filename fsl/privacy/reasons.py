"""Why a device or an edge failed, as others may hear it: an exception's text may quote a sample, a label or a gap."""

from fsl.errors import CodeError, FslError, HijackedError, LimitError, RunError, WireError
from fsl.faults import described, said


def failure_reason(error: BaseException, private: bool) -> str:
    """An exception in one line for another machine; of a private run only the kind, where its text may quote data.

    For exceptions; for refused work use `fsl.round.unusable.lost_reason`.

    What fsl says of messages and of a run's course quotes none; all texts are in the log of the node that failed.
    """
    own = isinstance(error, WireError | RunError | LimitError) and not isinstance(error, CodeError | HijackedError)
    if own or not private:
        return said(error) if isinstance(error, FslError) else described(error)
    return f"{type(error).__name__} (what it says may quote data of a private run, and stays in the log of its node)"
