"""Import what every measurement needs, in the process from which those of all measurements are forked."""

from __future__ import annotations

import logging
import os
import warnings
from importlib import import_module
from importlib.util import find_spec

import torch

from benchmarks.architectures.from_torchvision import declare_operators

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded: configurations are made in code
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
torch.set_num_threads(1)

declare_operators()
for package in ("torchvision", "timm", "transformers", "torch_pruning", "torch._dynamo", "benchmarks.coverage"):
    if find_spec(package.partition(".")[0]) is not None:
        import_module(package)
