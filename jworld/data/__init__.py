"""From recorded episodes to batches: record schema, readers, recorders and the Grain pipeline."""
