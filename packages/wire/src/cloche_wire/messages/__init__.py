"""The daemon's messages as dataclasses, mirroring specs/envd."""
