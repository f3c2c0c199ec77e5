"""The torch library in which all ops are defined. `Library.define` launches faster than `custom_op`."""

from __future__ import annotations

import torch

LIBRARY = torch.library.Library("tilus", "DEF")
