"""From raw videos to training triplets, one file per stage, from parquet to parquet (paper 3.1, supplement 4, 5)."""
