"""Training data: triplets in shards, the index, the plan of packs, decoding, prefetch."""
