"""The paper's evaluation: benchmark cases, one file per metric, tables."""
