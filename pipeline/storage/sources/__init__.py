"""Where images come from. `opening.open_source` tells the kind of a source from its content; `source` has the types."""

from pipeline.storage.sources.before import Partition, RawImage, Source, open_source

__all__ = ["Partition", "RawImage", "Source", "open_source"]
