"""`Spec`, by the name that strategies of one's own import it by."""

from fsl.importing.spec import Spec

__all__ = ["Spec"]
