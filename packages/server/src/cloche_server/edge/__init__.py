"""Public URLs to the right port of the right sandbox."""
