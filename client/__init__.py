"""A partner's premises: raw data enters here and never leaves."""
