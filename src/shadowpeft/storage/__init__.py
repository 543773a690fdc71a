"""Folders on disk: adapters, pretrained shadows, checkpoints of the authors' package, and stock models.

All that is read is checked before a module is built from it; all that is written is complete or absent.
May import `shadow` and everything below it, and `reporting`.
"""
