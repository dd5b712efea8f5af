"""The paper's claims, put to the test in the toy world: `arms` trains, `studies` compares, `report` tells.

Reading order: `studies.py` (what is claimed), `arms.py` (what is trained for it), `assets.py`, `train.py`,
`generate.py`, `score.py` (how it is measured), `compare.py` (what counts as agreement), `report.py`.
"""
