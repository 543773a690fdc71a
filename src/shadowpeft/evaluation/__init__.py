"""Measures of a model: losses and exact answers on rows, and the standard tasks of lm-evaluation-harness.

They take any causal language model: a shadowed one, a bare base or a detached one. Answers for a calibration
may be a server's, too. May import `model`, `data` and everything below them, `route` among these.
"""
