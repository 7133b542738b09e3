"""Devices as a mesh, and what lies where on it."""
