"""Molmo 1 (``allenai/MolmoE-1B-0924``, ``Molmo-7B-O``, ``Molmo-7B-D``, ``Molmo-72B``), native to transformers 5.

Importing this package makes the Auto classes know the model type ``molmo``; a released checkpoint is first converted:
``python -m vlmbench.models.molmo.convert SRC DST``.
"""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from vlmbench.models.molmo.configuration import MolmoConfig
from vlmbench.models.molmo.image_processing import MolmoImageProcessor
from vlmbench.models.molmo.modeling import MolmoForConditionalGeneration, MolmoModel
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
