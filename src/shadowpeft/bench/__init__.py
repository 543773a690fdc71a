"""How fast methods train and run side by side, and in how much memory: `shadowpeft bench`.

Imports `train`, `model` and all below them, and `reporting`; not `compare`. Only `cli` and recipes import it.
"""
