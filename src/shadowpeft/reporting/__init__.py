"""What every measurement needs besides its measure: statistics, tables, provenance, devices and the progress bar.

Imports `errors` and nothing that computes; `compare`, `bench`, `demo` and the runs import it.
"""
