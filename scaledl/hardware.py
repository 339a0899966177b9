"""Devices by name: what they compute, hold and send at most, from their makers' data sheets."""

import difflib
import re
from dataclasses import dataclass

_TERA, _GIGA, _GIBI = 1e12, 1e9, 2**30


@dataclass(frozen=True)
class Device:
    """One accelerator and the machine it usually stands in.

    Attributes:
        flops: floating-point operations a second of dense matrix products, by the precision of their factors.
        memory: bytes that programs find free (what the maker gives in 10^9 bytes, less the driver's share).
        bandwidth: bytes a second of its memory.
        intra_node: bytes a second, one way, to the other devices of its node (NVLink, xGMI or PCIe).
        inter_node: bytes a second, one way, to other nodes, a device: its share of the usual network.
        matrix: the share of `flops` that large matrix products reach.
        attention: the same of fused attention.
    """

    name: str
    flops: dict[str, float]
    memory: float
    bandwidth: float
    intra_node: float
    inter_node: float
    gpus_per_node: int = 8
    matrix: float = 0.5  # H100's, whose products are bounded by power; A100's reach 0.7 and 0.5
    attention: float = 0.3

    def peak(self, precision: str, tf32: bool = False) -> float | None:
        """Of matrix products in a run's precision; float32 ones may be allowed to use TF32."""
        return self.flops.get("bf16" if precision.startswith("bf16") else "tf32" if tf32 else "fp32")


def _device(
    name: str,
    bf16: float,
    tf32: float,
    fp32: float,
    fp8: float | None,
    memory: float,
    bandwidth: float,
    intra_node: float,
    inter_node: float,
    gpus_per_node: int = 8,
    reached: tuple[float, float] = (0.5, 0.3),
) -> Device:
    """TFLOP/s, GiB and GB/s."""
    flops = {"bf16": bf16 * _TERA, "tf32": tf32 * _TERA, "fp32": fp32 * _TERA}
    return Device(
        name,
        flops | ({} if fp8 is None else {"fp8": fp8 * _TERA}),
        memory * _GIBI,
        *(rate * _GIGA for rate in (bandwidth, intra_node, inter_node)),
        gpus_per_node,
        *reached,
    )


# V100 and T4 have no bf16 units and compute it as fp32; NVLink and xGMI one way; networks of 400 Gbit/s a device where
# H100 and later stand, 200 with A100, 100 with older ones and PCIe cards.
DEVICES = {
    "b200": _device("NVIDIA B200", 2250, 1125, 75, 4500, 178, 8000, 900, 50),
    "h200": _device("NVIDIA H200", 989.4, 494.7, 66.9, 1978.9, 139.8, 4800, 450, 50),
    "h100": _device("NVIDIA H100 80GB SXM", 989.4, 494.7, 66.9, 1978.9, 79.1, 3350, 450, 50),
    "h100_pcie": _device("NVIDIA H100 PCIe", 756, 378, 51, 1513, 79.1, 2039, 64, 25),
    "a100": _device("NVIDIA A100 80GB SXM", 312, 156, 19.5, None, 79.2, 2039, 300, 25, reached=(0.7, 0.5)),
    "a100_40gb": _device("NVIDIA A100 40GB SXM", 312, 156, 19.5, None, 39.4, 1555, 300, 25, reached=(0.7, 0.5)),
    "l40s": _device("NVIDIA L40S", 362, 183, 91.6, 733, 44.4, 864, 32, 12.5),
    "l4": _device("NVIDIA L4", 121, 60, 30.3, 242, 22.0, 300, 32, 12.5),
    "rtx_4090": _device("NVIDIA GeForce RTX 4090", 165.2, 82.6, 82.6, 330.3, 23.5, 1008, 32, 12.5),
    "v100": _device("NVIDIA V100 32GB SXM", 15.7, 15.7, 15.7, None, 31.7, 900, 150, 12.5),
    "t4": _device("NVIDIA T4", 8.1, 8.1, 8.1, None, 14.6, 320, 16, 12.5, 4),
    "mi300x": _device("AMD Instinct MI300X", 1307, 653.7, 163.4, 2615, 191.5, 5300, 448, 50),
}

# What torch.cuda.get_device_name() says, in the order in which it is looked for.
_SAID = {
    "h100 pcie": "h100_pcie",
    "h100": "h100",
    "h200": "h200",
    "b200": "b200",
    "a100-sxm4-40gb": "a100_40gb",
    "a100-pcie-40gb": "a100_40gb",
    "a100": "a100",
    "l40s": "l40s",
    "l4": "l4",
    "rtx 4090": "rtx_4090",
    "v100": "v100",
    "t4": "t4",
    "mi300x": "mi300x",
}


_OTHER = ("nvl", "laptop", "d", "mig")  # words of slower kin, and of a part, of a device


def device(name: str) -> Device:
    """The device of a key of DEVICES.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in DEVICES:
        close = difflib.get_close_matches(name.lower().replace("-", "_"), DEVICES, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"--gpu {name}: {hint}Known are {', '.join(DEVICES)}")
    return DEVICES[name]


def device_called(said: str) -> Device | None:
    """The device that PyTorch calls so, or None if it is not in the table."""
    words = said.lower().replace("_", " ")
    if any(_is_in(word, words) for word in _OTHER):
        return None
    return next((DEVICES[key] for part, key in _SAID.items() if _is_in(part, words)), None)


def _is_in(part: str, words: str) -> bool:
    """As words: `l4` is not in `l40` and `h200` not in `gh200`, `a100` is in `a100-sxm4-80gb`."""
    return re.search(rf"\b{part}\b", words) is not None
