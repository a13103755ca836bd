"""filesystem.Filesystem and /files."""
