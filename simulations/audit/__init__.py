"""Privacy audits: claim, code, ledger and measurement tied together, so that anyone can check them again."""
