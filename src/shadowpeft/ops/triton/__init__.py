"""The boundary as fused Triton kernels, compared with `ops/reference.py` forward and in every gradient.

`op` is the operation, `case` what it is given and compiled for, `launch`, `launch_few`, `few` and `call` the
launches, and `forward`, `backward`, `rows`, `strips` and `parts` the kernels. May import `ops.reference`,
`arch` and `errors`; only `ops.choice` imports it.
"""
