"""Cuts a model into segments, and joins the segments' states again."""

from fsl.split.cutting import Place, SplitModel, join, possible_cuts, refuse_no_tensor, refuse_tail, split

__all__ = ["Place", "SplitModel", "join", "possible_cuts", "refuse_no_tensor", "refuse_tail", "split"]
