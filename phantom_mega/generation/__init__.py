"""Generation: loading what was trained, cases, prompts, and the files that are written."""
