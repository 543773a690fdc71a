"""Where a folder comes from and how it is written: adapters, pretrained shadows, the authors' checkpoints, stock models.

Everything read is checked before anything is built from it, and everything written is complete or not there.
Imports `shadow` and all below it.
"""
