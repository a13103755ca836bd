"""Which node takes a sandbox; the only room that knows of more than one."""
