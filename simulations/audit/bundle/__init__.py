"""The evidence bundle: one signed archive from which anybody can check a run's privacy claim, offline.

`collect` makes it, `verify` checks it, and `independent` checks it again without a line of Veilrec. What is in it is
public to the federation: plans, ledgers, transcripts, policies, digests, scores. No user's data are.
"""
