"""A model of Hugging Face's kind, small enough to train in milliseconds."""

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


class TinyConfig(PretrainedConfig):
    model_type = "tiny"

    def __init__(self, width: int = 4, **more):
        super().__init__(**more)
        self.width = width


class Tiny(PreTrainedModel):
    """Classifies images (B, 1, 8, 8)."""

    config_class = TinyConfig

    def __init__(self, config: TinyConfig):
        super().__init__(config)
        self.flat, self.first, self.head = nn.Flatten(), nn.Linear(64, config.width), nn.Linear(config.width, 4)
        self.post_init()

    def forward(self, pixels):
        return {"logits": self.head(self.first(self.flat(pixels)).relu())}
