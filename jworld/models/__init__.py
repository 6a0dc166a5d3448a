"""Networks only: no noise schedule, no data format, no optimizer."""
