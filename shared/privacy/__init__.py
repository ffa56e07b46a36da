"""The privacy plan and its accountant: the only place where an epsilon is computed."""
