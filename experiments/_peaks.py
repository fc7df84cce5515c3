"""Public peak figures of accelerators: what a share of the peak, or a step's time on paper, is measured against.

bfloat16 without sparsity. Links are summed over a chip's links to chips of its pod or node, in one direction: what
makers call bidirectional is halved here.

Sources, read in 2026:
    TPU     docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e. v6e's links were 3584 Gbit/s there in 2024 and are
            3200 now, twice v5e's; v4's 2400 Gbit/s are no longer stated.
    NVIDIA  data sheets of A100 80 GB SXM, H100 SXM and H200 SXM; networks of DGX A100 and DGX H100, eight cards of
            200 and of 400 Gbit/s.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """What one chip can do at most, by its maker."""

    name: str
    flops: float  # bf16 operations a second, dense
    memory_bandwidth: float  # bytes a second
    link_bandwidth: float  # bytes a second to other chips, one direction, all links of the chip
    memory: float  # bytes
    group: int  # chips that those links join: a pod, or a node
    axes: int = 1  # of the torus that they form; 1 where a switch joins all
    network: float | None = None  # bytes a second and chip from one group to others; None: not public


V4 = Chip("TPU v4", 275e12, 1.2e12, 300e9, 32 * 2**30, group=4096, axes=3)
V5E = Chip("TPU v5e", 197e12, 0.819e12, 200e9, 16e9, group=256, axes=2, network=6.4e12 / 8 / 256)
V5P = Chip("TPU v5p", 459e12, 2.765e12, 600e9, 95e9, group=8960, axes=3)
V6E = Chip("TPU v6e", 918e12, 1.638e12, 400e9, 32e9, group=256, axes=2, network=25.6e12 / 8 / 256)
A100 = Chip("A100", 312e12, 2.039e12, 300e9, 80e9, group=8, network=25e9)
H100 = Chip("H100", 989.4e12, 3.35e12, 450e9, 80e9, group=8, network=50e9)
H200 = Chip("H200", 989.4e12, 4.8e12, 450e9, 141e9, group=8, network=50e9)
CHIPS = (V4, V5E, V5P, V6E, A100, H100, H200)

# jax's `device.device_kind`; on TPU v4 and later a JAX device is a chip. Other cards of the same generation (PCIe,
# 40 GB) have other peaks, so that none is guessed from a part of the name.
KINDS = {
    "TPU v4": V4,
    "TPU v5 lite": V5E,
    "TPU v5e": V5E,
    "TPU v5": V5P,
    "TPU v5p": V5P,
    "TPU v6 lite": V6E,
    "TPU v6e": V6E,
    "NVIDIA A100-SXM4-80GB": A100,
    "NVIDIA H100 80GB HBM3": H100,
    "NVIDIA H200": H200,
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip that JAX names so; None where its peaks are not known here, as on a CPU."""
    return KINDS.get(device_kind)
