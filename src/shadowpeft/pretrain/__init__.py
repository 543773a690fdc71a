"""How a shadow learns from plain text before it is attached: its start, its text, its objective and the run.

Imports `train` and all below it. Importing `config` and `run` does not import torch.
"""
