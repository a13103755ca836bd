"""Migrations of the control plane's tables, run by `session.Database.migrate`."""
