"""Recipes run: stage after stage, in a workdir."""
