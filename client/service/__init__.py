"""The local ranking service: HTTP on the partner's own premises. `app` is the way in."""
