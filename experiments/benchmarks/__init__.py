"""What the library costs, as ratios to the bare network, to a hand-written loop and to peers; compiled facts."""
