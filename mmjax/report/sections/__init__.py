"""Sections of the page. Each file says its place on it, ORDER, and has render(run), which returns the section, or nothing."""
