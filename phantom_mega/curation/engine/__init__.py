"""How stages run: what a stage is, its tables, one part of its work, all parts on Ray."""
