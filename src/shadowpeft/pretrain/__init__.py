"""Pretraining a shadow: where it starts, what it is trained on, and the folder that comes out."""
