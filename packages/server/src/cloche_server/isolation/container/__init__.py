"""Isolation by Linux namespaces, with crun: for speed and density; shares the host's kernel."""
