"""From folders of videos, in five formats, to uniform clips (`formats.list_items`, `clips.read_clips`)."""
