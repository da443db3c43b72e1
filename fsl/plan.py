"""Former home of `fsl.Spec`, kept so that older strategies still import it; use `from fsl import Spec`."""

from fsl.importing.spec import Spec

__all__ = ["Spec"]
