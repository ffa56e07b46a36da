"""Data that come to a partner by themselves, and leave when they must: import, scrubbing, retention, erasure."""
