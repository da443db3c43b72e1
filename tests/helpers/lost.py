"""Tells tests when an edge has lost a device, so that whoever stalls need not stall for longer."""

import threading

from fsl.wire.edge.edge_round import EdgeRound


def somebody_lost(monkeypatch) -> threading.Event:
    """Returns what is set once an edge has lost a device."""
    lose, lost = EdgeRound._lose, threading.Event()
    monkeypatch.setattr(EdgeRound, "_lose", lambda *given: (lose(*given), lost.set()))
    return lost
