"""Molmo 1 (``allenai/MolmoE-1B-0924``, ``Molmo-7B-O``, ``Molmo-7B-D``, ``Molmo-72B``), native to transformers 5.

Importing this package makes the Auto classes know the model type ``molmo``. A released checkpoint of the hub is loaded
by :mod:`vlmbench.models.molmo.released`, or converted first: ``python -m vlmbench.models.molmo.convert SRC DST``.
"""

# transformers' annotations are incomplete and differ between the versions supported here.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
)

# From its module: older transformers hide the name behind torchvision, which this processor does not need.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from vlmbench.models.molmo.backbone import MolmoModel
from vlmbench.models.molmo.configuration import MolmoConfig
from vlmbench.models.molmo.image_processing import MolmoImageProcessor
from vlmbench.models.molmo.modeling import MolmoForConditionalGeneration
from vlmbench.models.molmo.processing import MolmoProcessor

__all__ = [
    "MolmoConfig",
    "MolmoForConditionalGeneration",
    "MolmoImageProcessor",
    "MolmoModel",
    "MolmoProcessor",
    "register",
]


def register() -> None:
    """Make the Auto classes know Molmo; calling it again changes nothing."""
    AutoConfig.register(MolmoConfig.model_type, MolmoConfig, exist_ok=True)
    AutoModel.register(MolmoConfig, MolmoModel, exist_ok=True)
    AutoModelForImageTextToText.register(MolmoConfig, MolmoForConditionalGeneration, exist_ok=True)
    AutoImageProcessor.register(MolmoConfig, image_processor_classes={"pil": MolmoImageProcessor}, exist_ok=True)
    AutoProcessor.register(MolmoConfig, MolmoProcessor, exist_ok=True)


register()
