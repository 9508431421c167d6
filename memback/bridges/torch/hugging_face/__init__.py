"""Models of Hugging Face's transformers, made from their configs, which are data: no code of one is run."""
