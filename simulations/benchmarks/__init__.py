"""Benchmarks: what a part of Veilrec costs, as ``veilrec bench NAME`` prints it."""
