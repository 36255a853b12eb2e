"""What a run begins with, as files: the base model, its tokenizer and template, stored adapters. Imports no torch."""
