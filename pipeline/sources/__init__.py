"""Where images come from: folders, shards, manifests and URLs."""
