"""The control plane: who may do what, over REST."""
