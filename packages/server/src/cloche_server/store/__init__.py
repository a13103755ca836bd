"""Rows and migrations: the only SQL of the server."""
