"""From steps to a bootable root file system."""
