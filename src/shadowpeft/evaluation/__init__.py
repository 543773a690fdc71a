"""Measures of a model: losses and exact answers on rows, and the standard tasks of lm-evaluation-harness.

They take any causal language model: a shadowed one, a bare base or a detached one; for a calibration a server,
too. May import `model`, `data` and everything below them, `route` among these.
"""
