"""Options of data that are out of range, or do not fit the kind of data."""

from __future__ import annotations

from unixkd.config import DataConfig
from unixkd.errors import UserError, unknown_name

_NOT_OF_STREAMS = {
    "holdout": "images cannot be held out of a stream",
    "limit": "a stream has no subset: give data.stream_images",
    "views": "a stream does not show an image again in another view",
    "mixes": "a stream does not show an image again, so its mixes are not fixed",
    "max_unreadable": "a stream cannot be read through beforehand",
    "in_memory": "a stream is never in memory",
}


def check_numbers(config: DataConfig) -> None:
    """Raise where a number is out of range."""
    if not 0 <= config.holdout < 1:
        raise UserError(f"data.holdout must be at least 0 and below 1, not {config.holdout}")
    if config.evaluate_on not in ("auto", "test"):
        raise unknown_name("data.evaluate_on", config.evaluate_on, ("auto", "test"))
    if config.size is not None and config.size < 1:
        raise UserError(f"data.size must be at least 1 pixel, not {config.size}")
    if config.crop_padding is not None and config.crop_padding < 0:
        raise UserError(f"data.crop_padding must be at least 0 pixels, not {config.crop_padding}")
    if config.views is not None and config.views < 1:
        raise UserError(f"data.views must be at least 1, not {config.views}; leave it out for all views")
    if config.mixes is not None and config.mixes < 1:
        raise UserError(
            f"data.mixes must be at least 1, not {config.mixes}; leave it out for images as they are"
        )
    if config.mixes is not None and config.views is not None:
        raise UserError("data.mixes are of all views of an image: leave data.views out")
    if config.max_unreadable < 0:
        raise UserError(f"data.max_unreadable must be at least 0, not {config.max_unreadable}")
    if config.workers < 0:
        raise UserError(f"data.workers must be at least 0, not {config.workers}")
    if config.stream_images is not None and not config.name.startswith("stream:"):
        raise UserError(f"data.stream_images is for a stream, and {config.name} is none: give data.limit")


def check_stream(config: DataConfig) -> None:
    """Raise where an option is none of a stream's."""
    default = DataConfig()
    for name, reason in _NOT_OF_STREAMS.items():
        if getattr(config, name) != getattr(default, name):
            raise UserError(f"{reason}; leave data.{name} out")
    if config.stream_buffer < 1:
        raise UserError(f"data.stream_buffer must be at least 1, not {config.stream_buffer}")
