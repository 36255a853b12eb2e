"""From sources to tokens: files, formats, records, texts, tokens, splits and packs. Imports no torch."""
