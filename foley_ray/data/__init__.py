"""Recordings -> manifest -> dataset (Parquet) -> batches, on Ray Data."""
