"""What every measurement needs besides its measure: statistics, tables, provenance, devices, progress.

`compare`, `bench`, `demo`, the model cards and the training runs import it.
It imports `errors` and nothing of the package that computes.
"""
