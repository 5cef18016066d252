"""Fine-tuning and quantization-aware training (QAT): data, losses, and the loop."""
