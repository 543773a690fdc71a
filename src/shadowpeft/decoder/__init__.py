"""How a stock decoder runs shadowed without being changed.

Here are the views of a decoder, the key-value cache of base and shadow, the loan of a base, whole rows, and
FSDP shards. May import `arch` and all below it, and does not know what is trained.
"""
