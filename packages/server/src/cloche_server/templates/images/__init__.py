"""Images as bases of templates: what a name means, what a manifest says, and the layers that come of it."""
