"""In which floating-point form the passes run; weights, their gradients and the loss are float32 throughout.

bf16 needs nothing more. fp16 reaches down to 6e-8 only, so its loss is scaled up on the way back (Micikevicius et
al., 2018), by as much as the gradients bear.
"""

from __future__ import annotations

from typing import Final

import torch

_FORMS: Final = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def dtype_of(precision: str) -> torch.dtype:
    """Return the form of matrix products in `precision`: bf16, fp16 or fp32."""
    return _FORMS[precision]


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return a context that runs passes on `device` in `precision`."""
    return torch.autocast(
        device.type, dtype=dtype_of("bf16" if precision == "fp32" else precision), enabled=precision != "fp32"
    )


def scaler_of(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Return what scales the loss, of fp16 alone: by 65536, halved at an overflow, doubled after 2000 steps without."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
