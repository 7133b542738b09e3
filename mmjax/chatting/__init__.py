"""Conversations with a model: opened, read into a cache, answered token by token."""
