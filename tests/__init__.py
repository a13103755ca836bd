"""Tests of Cloche; `support` and `fakes` are importable from every one of them."""
