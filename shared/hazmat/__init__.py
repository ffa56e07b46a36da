"""Hazardous material: randomness that privacy depends on. Test vectors or nothing."""
