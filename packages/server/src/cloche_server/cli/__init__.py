"""The cloche command; one verb per file."""
