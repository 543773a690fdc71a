"""The doctor: what this machine has, and what a model can do here or would need.

`machine` collects versions, devices and extras; `model` reads a model's configuration, and no weights. It may
import all but the command line, which alone imports it.
"""
