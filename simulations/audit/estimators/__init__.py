"""Bounds and estimates of epsilon from the scores of canaries, one method a file; `assess` puts them together."""
