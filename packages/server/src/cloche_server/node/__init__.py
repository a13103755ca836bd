"""The node: one machine's sandboxes, from cold to gone. The only process that runs as root."""
