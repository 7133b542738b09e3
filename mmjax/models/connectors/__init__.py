"""What stands between encoder and decoder."""
