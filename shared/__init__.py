"""What the two sides of a federation must agree on: types, wire format, model, privacy, metrics."""
