"""What GPUs are built for, by NVIDIA's data sheets, and which share of it is reached. Imports no torch."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One device.

    Attributes:
        half_flops: FLOP/s in bfloat16 on tensor cores, without sparsity.
        single_flops: FLOP/s in float32 (not TF32).
        bandwidth: Of its memory, in bytes/s.
        memory: In bytes.
    """

    half_flops: float
    single_flops: float
    bandwidth: float
    memory: float


def _gpu(half_tflops: float, single_tflops: float, gb_per_s: float, memory_gb: float) -> Gpu:
    return Gpu(half_tflops * 1e12, single_tflops * 1e12, gb_per_s * 1e9, memory_gb * 1e9)


# The first name that stands in a device's decides. Names without more are of the SXM form with the larger memory.
GPUS: dict[str, Gpu] = {
    "B200": _gpu(2250.0, 75.0, 8000, 180),
    "H200": _gpu(989.4, 66.9, 4800, 141),
    "H100 PCIe": _gpu(756.0, 51.2, 2000, 80),
    "H100 NVL": _gpu(835.5, 60.0, 3900, 94),
    "H100": _gpu(989.4, 66.9, 3350, 80),
    "A100": _gpu(312.0, 19.5, 2039, 80),
    "A40": _gpu(149.7, 37.4, 696, 48),
    "A30": _gpu(165.0, 10.3, 933, 24),
    "L40S": _gpu(362.0, 91.6, 864, 48),
    "L4": _gpu(121.0, 30.3, 300, 24),
    "RTX 4090": _gpu(165.2, 82.6, 1008, 24),
    "RTX 3090": _gpu(71.0, 35.6, 936, 24),
}


def name_of_gpu(device: str) -> str | None:
    """The name in `GPUS` of a device; None if it is not known.

    Args:
        device: As `torch.cuda.get_device_name` has it, such as "NVIDIA H100 80GB HBM3", or as Slurm's administrators
            name it, such as "a100_80gb".
    """
    words = device.replace("_", " ")
    return next((name for name in GPUS if re.search(rf"\b{name}\b", words, re.IGNORECASE)), None)


def find_gpu(device: str) -> Gpu | None:
    """A device by its name; None if it is not known."""
    name = name_of_gpu(device)
    return None if name is None else GPUS[name]


def peak_flops(device: str, dtype: str) -> float | None:
    """Returns the FLOP/s that a device is built for; None if it is not known.

    Args:
        device: As for `find_gpu`.
        dtype: `bfloat16` or `float32`.
    """
    gpu = find_gpu(device)
    return None if gpu is None else (gpu.half_flops if dtype == "bfloat16" else gpu.single_flops)
