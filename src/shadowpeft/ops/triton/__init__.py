"""The boundary as fused Triton kernels: `op` is the operation, `launch` its plan, `forward` and `backward` the kernels.

Compared with `ops/reference.py`, forward and every gradient.
"""
