"""The evil server: scripted coordinators that try to get more out of a partner than the sum of many."""
