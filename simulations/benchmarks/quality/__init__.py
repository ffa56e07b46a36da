"""Ranking quality: data sets x partitions x privacy x seeds x methods, as ``veilrec bench quality`` measures it.

::

    Study -> cells -> runner -> federated | central -> Result -> cache (a JSON file and an npz file a cell)
                         |                                         |
                      canary (first)                            summary -> rows, comparisons -> document, figures
"""
