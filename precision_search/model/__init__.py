"""What comes in: the bundle, its node keys and files, tokenizer, samples and generation settings."""
