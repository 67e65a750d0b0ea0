"""Data sets: sources, views as integer codes, and batches that depend on nothing but their arguments."""

from unixkd.data.files import load_images
from unixkd.data.load import Data, load_data
from unixkd.data.sampling import epoch_order
from unixkd.data.split import MemorySplit, Split
from unixkd.data.views import apply_views, identity_view, num_views, to_pixels, view_codes

__all__ = [
    "Data",
    "MemorySplit",
    "Split",
    "apply_views",
    "epoch_order",
    "identity_view",
    "load_data",
    "load_images",
    "num_views",
    "to_pixels",
    "view_codes",
]
