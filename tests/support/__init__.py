"""What the tests stand on: capabilities, the census, a running server, the source tree as data."""
