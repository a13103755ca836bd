"""Connections of sandboxes that may reach some names only: each is read, checked and made anew."""
