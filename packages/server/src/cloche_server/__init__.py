"""The server of Cloche: edge, control plane and node on one machine."""
