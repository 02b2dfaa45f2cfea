"""What a model is: the bundle, its graphs and node keys, its files, tokenizer, samples, export and rewrites."""
