"""From folders of videos to training records: the parts of `python -m jworld.precompute`."""
