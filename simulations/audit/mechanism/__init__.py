"""Rung 0: what the installed code does, looked at part by part; tests plant the bugs that the checks look for."""
