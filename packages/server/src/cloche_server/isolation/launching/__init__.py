"""A driver's single-threaded process that forks for every request: to unshare, mount and execute in."""
