"""How good a model is: losses and answers on rows, and the standard tasks of lm-evaluation-harness.

Imports `model`, `data` and all below them.
"""
