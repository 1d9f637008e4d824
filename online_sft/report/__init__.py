"""Runs as a page in the browser: one HTML file that needs no server and loads nothing."""
