"""A job as it is written: YAML with line numbers, checked by the schema and the rules that the API server has."""
