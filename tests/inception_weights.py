"""Weights of Inception v3 drawn by name, in the published file's names and shapes: Szegedy et al. 2016, table 1."""

import zlib

import numpy as np


def units():
    """(name, output channels, input channels, kernel height, kernel width) of every convolution."""

    def chain(block, branch, channels, *steps):
        for suffix, out, height, width in steps:
            yield f"{block}.{branch}{suffix}", out, channels, height, width
            channels = out

    yield from chain("Conv2d", "", 3, ("_1a_3x3", 32, 3, 3), ("_2a_3x3", 32, 3, 3), ("_2b_3x3", 64, 3, 3))
    yield from chain("Conv2d", "", 64, ("_3b_1x1", 80, 1, 1), ("_4a_3x3", 192, 3, 3))
    for letter, channels, pooled in (("b", 192, 32), ("c", 256, 64), ("d", 288, 64)):
        block = f"Mixed_5{letter}"
        yield from chain(block, "branch1x1", channels, ("", 64, 1, 1))
        yield from chain(block, "branch5x5", channels, ("_1", 48, 1, 1), ("_2", 64, 5, 5))
        yield from chain(block, "branch3x3dbl", channels, ("_1", 64, 1, 1), ("_2", 96, 3, 3), ("_3", 96, 3, 3))
        yield from chain(block, "branch_pool", channels, ("", pooled, 1, 1))
    yield from chain("Mixed_6a", "branch3x3", 288, ("", 384, 3, 3))
    yield from chain("Mixed_6a", "branch3x3dbl", 288, ("_1", 64, 1, 1), ("_2", 96, 3, 3), ("_3", 96, 3, 3))
    for letter, inner in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
        block = f"Mixed_6{letter}"
        yield from chain(block, "branch1x1", 768, ("", 192, 1, 1))
        yield from chain(block, "branch7x7", 768, ("_1", inner, 1, 1), ("_2", inner, 1, 7), ("_3", 192, 7, 1))
        steps = (("_1", inner, 1, 1), ("_2", inner, 7, 1), ("_3", inner, 1, 7), ("_4", inner, 7, 1), ("_5", 192, 1, 7))
        yield from chain(block, "branch7x7dbl", 768, *steps)
        yield from chain(block, "branch_pool", 768, ("", 192, 1, 1))
    yield from chain("Mixed_7a", "branch3x3", 768, ("_1", 192, 1, 1), ("_2", 320, 3, 3))
    steps = (("_1", 192, 1, 1), ("_2", 192, 1, 7), ("_3", 192, 7, 1), ("_4", 192, 3, 3))
    yield from chain("Mixed_7a", "branch7x7x3", 768, *steps)
    for letter, channels in (("b", 1280), ("c", 2048)):
        block = f"Mixed_7{letter}"
        yield from chain(block, "branch1x1", channels, ("", 320, 1, 1))
        yield from chain(block, "branch3x3", channels, ("_1", 384, 1, 1), ("_2a", 384, 1, 3))
        yield from chain(block, "branch3x3", 384, ("_2b", 384, 3, 1))
        yield from chain(block, "branch3x3dbl", channels, ("_1", 448, 1, 1), ("_2", 384, 3, 3), ("_3a", 384, 1, 3))
        yield from chain(block, "branch3x3dbl", 384, ("_3b", 384, 3, 1))
        yield from chain(block, "branch_pool", channels, ("", 192, 1, 1))


def weights():
    """Each array from its own name's seed, so that any program can draw the same."""
    found = {}
    for name, out, channels, height, width in units():
        name = name.replace("Conv2d._", "Conv2d_")
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        scale = np.sqrt(2 / (channels * height * width))
        found[f"{name}.conv.weight"] = (scale * rng.normal(size=(out, channels, height, width))).astype(np.float32)
        found[f"{name}.bn.weight"] = rng.uniform(0.5, 1.5, out).astype(np.float32)
        found[f"{name}.bn.bias"] = rng.normal(0, 0.1, out).astype(np.float32)
        found[f"{name}.bn.running_mean"] = rng.normal(0, 0.1, out).astype(np.float32)
        found[f"{name}.bn.running_var"] = rng.uniform(0.5, 1.5, out).astype(np.float32)
    return found


def images():
    """One image in [-1, 1], large enough for several positions in the last block."""
    return np.random.default_rng(0).uniform(-1, 1, (1, 139, 155, 3)).astype(np.float32)
