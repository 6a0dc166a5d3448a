"""What systems share when they measure a model: results, accuracy tables, contact sheets, held-out clips."""
