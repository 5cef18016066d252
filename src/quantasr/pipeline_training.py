"""Fine-tuning and quantization-aware training as verbs: ``finetune`` and ``qat``."""
