"""What every measurement needs besides its measure: statistics, tables, provenance, devices, progress.

Whatever reports a number imports it: `train`, `pretrain`, `evaluation`, `compare`, `bench`, `export`,
`doctor` and the cards of `storage`. It imports `errors` and nothing of the package that computes.
"""
