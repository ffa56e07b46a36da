"""A grid that keeps every byte that partners are sent and that they send."""

from simulations.audit.mechanism.recording import Exchanged, RecordingGrid, crossed

__all__ = ["Exchanged", "RecordingGrid", "crossed"]
