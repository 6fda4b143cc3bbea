"""What is published of TPU chips."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of a chip (cloud.google.com/tpu/docs, November 2026).

    Attributes:
      name: as a topology begins: v5e.
      peak_flops: a second, bfloat16.
      flops_per_cycle: of all its matrix units: their number x their side squared x 2.
      memory_bytes: HBM.
      memory_bandwidth: bytes a second.
      links: to neighbours.
      link_bandwidth: bytes a second of one link, one way.
      smallest_ring: the sides of a slice from which on its ends are joined.
    """

    name: str
    peak_flops: float
    flops_per_cycle: int
    memory_bytes: int
    memory_bandwidth: float
    links: int
    link_bandwidth: float
    smallest_ring: int

    @property
    def clock(self) -> float:
        """Cycles a second, as the published peak implies."""
        return self.peak_flops / self.flops_per_cycle


_GIB = 2**30
CHIPS = {  # by JAX's device_kind
    "TPU v4": Chip("v4", 275e12, 8 * 128**2 * 2, 32 * _GIB, 1228e9, 6, 50e9, 4),
    "TPU v5 lite": Chip("v5e", 197e12, 4 * 128**2 * 2, 16 * _GIB, 819e9, 4, 50e9, 16),
    "TPU v5": Chip("v5p", 459e12, 8 * 128**2 * 2, 95 * _GIB, 2765e9, 6, 100e9, 4),
    "TPU v6 lite": Chip("v6e", 918e12, 2 * 256**2 * 2, 32 * _GIB, 1600e9, 4, 100e9, 16),
}
