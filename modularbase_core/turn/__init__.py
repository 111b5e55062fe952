"""A turn, stage by stage: understand, route, packs, fuse, sample."""
