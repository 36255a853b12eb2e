"""From sources to tokens: files, formats, records, templates, tokens, splits and packs. Imports no torch."""
