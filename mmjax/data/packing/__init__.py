"""Examples put into rows."""
