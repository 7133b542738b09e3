"""Models: maths only. No checkpoint names, no mesh, no optimizer."""
