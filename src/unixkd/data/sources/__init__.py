"""Where images come from: each source gives records that `unixkd.data.source` describes."""
