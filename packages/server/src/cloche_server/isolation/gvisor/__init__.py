"""The gVisor driver: a kernel of its own between a sandbox and the host's, by runsc."""
