"""The isolation drivers behind one interface."""
