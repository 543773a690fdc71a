"""The kernels of some steps, as torch's profiler saw them."""

from collections import Counter
from typing import Any

import torch

KEPT = 60  # kernels that are named; the others are summed


def kernel_times(found: Any, steps: int) -> dict[str, Any]:
    """Return the microseconds a step of each kernel, from its first kernel to its last, and of all kernels.

    Args:
        found: the profile.
        steps: how many steps it covers.
    """
    time, count = Counter[str](), Counter[str]()
    begun, ended = [], []
    for event in found.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            time[event.name] += event.time_range.elapsed_us()
            count[event.name] += 1
            begun.append(event.time_range.start)
            ended.append(event.time_range.end)
    top = [
        {"kernel": name[:160], "us": round(us / steps, 1), "launches": count[name] / steps}
        for name, us in time.most_common(KEPT)
    ]
    rest = sum(time.values()) - sum(us for _, us in time.most_common(KEPT))
    return {
        "span_us": round((max(ended) - min(begun)) / steps, 1),
        "busy_us": round(sum(time.values()) / steps, 1), "kernels": top, "rest_us": round(rest / steps, 1),
    }  # fmt: skip
