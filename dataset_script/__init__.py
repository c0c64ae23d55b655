"""From a raw folder of cell images to a `datasets` repo: `python -m dataset_script build`, then `push`."""
