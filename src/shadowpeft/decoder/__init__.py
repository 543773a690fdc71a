"""How a stock decoder runs shadowed without being changed: views of it, its cache, its loan, its shards.

Imports `arch` and nothing above it; knows nothing of what is trained.
"""
