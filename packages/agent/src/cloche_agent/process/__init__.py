"""process.Process: start, watch, feed and signal processes."""
