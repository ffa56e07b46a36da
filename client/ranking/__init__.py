"""Ranking on the partner's own hardware with a released adapter."""
