"""How a shadow learns from plain text before it is attached: its start, its text, its objective and the run.

It may import `train` and all folders below it, and is imported by the command line and the recipes. Importing
`config` and `run` does not import torch, so that a mistake in the settings is reported at once.
"""
