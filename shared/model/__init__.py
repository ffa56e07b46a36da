"""The shared BERT: a frozen text stage, then a behaviour stage with LoRA."""
