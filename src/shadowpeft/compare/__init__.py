"""Studies that compare ways of adapting a model, and their tasks.

Every method gets an equal budget and an equal search, settings are chosen on validation data, and the test
split is read once. May import `train`, `evaluation`, `model` and all below them, and `reporting`; only `cli`
and recipes import it.
"""
