"""Many partners on one machine: engines, synthetic and public data, baselines, evaluation, reports."""
