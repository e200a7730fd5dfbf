"""The public names of other libraries, on top of sseflask, so that moving over is one changed import."""
