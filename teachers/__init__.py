"""Teachers: pretrained networks behind one boundary, and the ways to fuse what they say."""
