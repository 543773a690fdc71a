"""Routing: how sure an edge model is of an answer, when that is sure enough, and what it is worth.

Numbers in, numbers out: the log-probabilities of an answer's tokens become a score, and a policy, calibrated
on held-out rows, says whether the answer is kept or the request goes to the cloud. Nothing here runs a model,
opens a connection or imports torch. May import `errors`, `checked_fields`, `storage.atomic`, `reporting` and
nothing above them.
"""
