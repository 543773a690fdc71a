"""The boundary as fused Triton kernels, compared with `ops/reference.py` forward and in every gradient.

`op` is the operation, `case` what it is given and compiled for, `launch` and `call` the launches, and
`forward`, `backward` and `parts` the kernels. May import `ops.reference`, `arch` and `errors`; only
`ops.choice` imports it.
"""
