"""How fast methods train and run side by side, and in how much memory: `shadowpeft bench`.

`run` takes turns among the methods, `measure` times one of them, `check` tests their numbers first, and
`report` and `plot` show what was measured. May import `train`, `model` and all below them, and `reporting`;
not `compare`. Only `cli` and recipes import it.
"""
