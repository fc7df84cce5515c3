"""What the library costs: ratios against the bare network, a hand-written loop, and peers; facts of compiled programs."""
